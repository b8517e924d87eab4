"""Quantized gathers and reductions between hosts, which are network namespaces."""

import hosts as made_hosts
import pytest
from test_launcher import script  # noqa: F401 (a fixture)
from test_several_hosts import LAYERS, NUMEL, SMALL, counted_per_element, hosts, sent_per_element, train  # noqa: F401

REASON = made_hosts.why_not()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))


@pytest.mark.slow
def test_two_hosts_train_as_one_in_fewer_bytes(train):  # noqa: F811
    """Catches gathers whose values depend on where the ranks are, sums that depend on more than the hosts, and values
    that cross between hosts as they are: gathers take at most 0.52 of bf16's bytes, and reductions 0.28 of those of one
    sum per host, as the communicators count them and as the interfaces do."""
    zero = SMALL | {"zero_quantized_weights": True, "zero_quantized_gradients": True}
    one_host, _ = train(dtype="bf16", zero=zero)
    by_hosts, _ = train(2, 2, dtype="bf16", zero=zero)
    same_hosts, _ = train(2, 2, dtype="bf16", zero=zero | {"stage3_max_live_parameters": NUMEL})
    flat, _ = train(2, 2, dtype="bf16", zero=zero, hierarchical_collectives=False)
    assert [rank[:3] for rank in flat] == [rank[:3] for rank in one_host]
    assert [rank[:3] for rank in same_hosts] == [rank[:3] for rank in by_hosts]
    assert by_hosts[0][1][1:] != one_host[0][1][1:]  # sums of hosts are coded, not terms of ranks
    for rank, one in zip(by_hosts, one_host, strict=True):
        assert rank[1] == pytest.approx(one[1], rel=0.01)
    # Of bf16: see test_several_hosts.py. Each host sends the other one a sum for each of its elements.
    gathers, reduction = (2 * LAYERS - 2) / LAYERS * 2, 2
    assert 0 < counted_per_element(by_hosts) <= 0.52 * gathers + 0.28 * reduction
    assert sent_per_element(by_hosts) <= 1.1 * (0.52 * gathers + 0.28 * reduction)
    print(f"between hosts: {counted_per_element(by_hosts) / (gathers + 2 * reduction):.4f} of the bytes without codes")


@pytest.mark.slow
def test_second_shards_hold_what_operators_read(train):  # noqa: F811
    """Catches second shards of exact values: the backward would compute with other weights than the forward."""
    zero = SMALL | {"zero_quantized_weights": True}  # sums have the bits of one host
    one_host, _ = train(dtype="bf16", zero=zero)
    second, _ = train(2, 2, dtype="bf16", zero=zero | {"zero_hpz_partition_size": 2})
    assert [rank[:3] for rank in second] == [rank[:3] for rank in one_host]
    # The backward gathers nothing from the other host.
    assert counted_per_element(second) <= 1.01 * (0.52 * 2 + 2 * 2)
