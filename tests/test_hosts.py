"""The hosts of tests (hosts.py): network namespaces with the same names in every module of a run."""

import hosts as made_hosts
import pytest

REASON = made_hosts.why_not()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))


def test_hosts_are_made_again_while_the_old_namespaces_still_exist(tmp_path):
    """Catches hosts that leave links behind: while anything uses a removed namespace, its link keeps the name that the
    next module's hosts need."""
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    made = made_hosts.Hosts(1, folders[0])
    with open(f"/run/netns/{made.names[0]}") as still_used:
        made.close()
        made_hosts.Hosts(1, folders[1]).close()
        assert not still_used.closed
