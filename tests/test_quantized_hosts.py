"""Quantized gathers and reductions between hosts, which are network namespaces."""

import hosts as made_hosts
import pytest
from test_launcher import script  # noqa: F401 (a fixture)
from test_several_hosts import LAYERS, SMALL, counted_per_element, hosts, sent_per_element, train  # noqa: F401

REASON = made_hosts.why_not()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))


@pytest.mark.slow
def test_two_hosts_train_as_one_in_fewer_bytes(train):  # noqa: F811
    """Catches codes whose values depend on where the ranks are, and values that cross between hosts as they are:
    gathers take at most 0.52 of bf16's bytes and reductions 0.28, as the communicators count them and as the interfaces
    do."""
    zero = SMALL | {"zero_quantized_weights": True, "zero_quantized_gradients": True}
    one_host, _ = train(dtype="bf16", zero=zero)
    by_hosts, _ = train(2, 2, dtype="bf16", zero=zero)
    flat, _ = train(2, 2, dtype="bf16", zero=zero, hierarchical_collectives=False)
    for ranks in (by_hosts, flat):
        assert [rank[:3] for rank in ranks] == [rank[:3] for rank in one_host]
    # Of bf16: see test_several_hosts.py. Each rank sends two ranks of the other host what it has for them.
    gathers, reduction = (2 * LAYERS - 2) / LAYERS * 2, 2 * 2
    assert 0 < counted_per_element(by_hosts) <= 0.52 * gathers + 0.28 * reduction
    assert sent_per_element(by_hosts) <= 1.1 * (0.52 * gathers + 0.28 * reduction)
    print(f"between hosts: {counted_per_element(by_hosts) / (gathers + reduction):.4f} of bf16's bytes")


@pytest.mark.slow
def test_second_shards_hold_what_operators_read(train):  # noqa: F811
    """Catches second shards of exact values: the backward would compute with other weights than the forward."""
    zero = SMALL | {"zero_quantized_weights": True}
    one_host, _ = train(dtype="bf16", zero=zero)
    second, _ = train(2, 2, dtype="bf16", zero=zero | {"zero_hpz_partition_size": 2})
    assert [rank[:3] for rank in second] == [rank[:3] for rank in one_host]
    # The backward gathers nothing from the other host.
    assert counted_per_element(second) <= 1.01 * (0.52 * 2 + 2 * 2)
