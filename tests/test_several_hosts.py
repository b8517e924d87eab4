"""Training on several hosts, which are network namespaces: the results of one host, and the bytes between hosts."""

import json
from typing import Any

import hosts as made_hosts
import pytest
from test_launcher import ROOT, environment, launch, script  # noqa: F401 (a fixture)

REASON = made_hosts.why_not()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))

LAYERS, WIDTH = 4, 256
NUMEL = LAYERS * WIDTH * WIDTH
STEPS, WARMUP_STEPS = 4, 1
# Every rank prints a line: its number, the losses, the bytes that its host has sent in the last steps, and what its
# communicators count as sent between hosts.
PROGRAM = f"""
import json, os, torch, zeropage
from pathlib import Path

def sent_bytes():
    lines = [line.split() for line in Path("/proc/net/dev").read_text().splitlines()]
    return sum(int(words[9]) for words in lines if words[0].startswith("eth"))

rank = int(os.environ["RANK"])
config = json.loads(os.environ["CONFIG"])
torch.set_num_threads(1)
torch.manual_seed(0)
layers = [torch.nn.Linear({WIDTH}, {WIDTH}, bias=False) for _ in range({LAYERS})]
model = torch.nn.Sequential(*(part for layer in layers for part in (layer, torch.nn.Tanh())))
engine, *_ = zeropage.initialize(model=model, config=config)
dtype = torch.bfloat16 if "bf16" in config else torch.float32
generator = torch.Generator().manual_seed(rank)
communicators = [c for c in (engine._communicators.parameters, engine._communicators.gradients) if c is not None]
losses = []
for step in range({STEPS + WARMUP_STEPS}):
    if step == {WARMUP_STEPS}:
        communicators[0].job.barrier()
        before, counted_before = sent_bytes(), sum(c.bytes_between_hosts for c in communicators)
        communicators[0].job.barrier()
    batch = torch.randn(4, {WIDTH}, generator=generator).to(dtype)
    loss = engine(batch).float().square().mean()
    engine.backward(loss)
    engine.step()
    losses.append(loss.item())
communicators[0].job.barrier()
sent = sent_bytes() - before
counted = sum(c.bytes_between_hosts for c in communicators) - counted_before
communicators[0].job.barrier()
with zeropage.zero.GatheredParameters(list(model.parameters())):
    total = sum(p.detach().double().sum().item() for p in model.parameters())
os.write(1, (json.dumps([rank, losses, total, sent, counted]) + os.linesep).encode())
"""


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    made = made_hosts.Hosts(2, tmp_path_factory.mktemp("hosts"))
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def train(hosts, script, tmp_path):  # noqa: F811
    """Runs the program on hosts with `slots` ranks; empty: on one host with four. Returns what the ranks
    print, sorted, and the errors of the launcher."""
    path = script(PROGRAM)

    def run(*slots: int, dtype: str = "fp32", zero: dict | None = None, **own) -> tuple[list[Any], str]:
        config = {
            "train_micro_batch_size_per_gpu": 4,
            "gradient_clipping": 0.5,
            "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0, **(zero or {})},
            "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}},
            "zeropage": {"page_numel": WIDTH * WIDTH, **own},
        }
        if dtype != "fp32":
            config[dtype] = {"enabled": True}
        (tmp_path / "hostfile").write_text("".join(f"host{i} slots={n}\n" for i, n in enumerate(slots)))
        words = ["--num_gpus=4"]
        if slots:
            words = ["--hostfile", str(tmp_path / "hostfile"), "--launcher_args", f"-F {hosts.ssh_config}"]
            (tmp_path / ".deepspeed_env").write_text(f"CONFIG={json.dumps(config)}\n")
        env = environment(PYTHONPATH=str(ROOT / "python"), CONFIG=json.dumps(config), ZEROPAGE_DEVICE="cpu")
        done = launch(*words, path, env=env, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        lines = [line.partition("] ")[2] for line in done.stdout.splitlines() if "] [" in line]
        return sorted(json.loads(line) for line in lines), done.stderr

    return run


def sent_per_element(ranks: list) -> float:
    """Bytes that both hosts sent to each other in one step, per element of the model."""
    return (ranks[0][3] + ranks[2][3]) / STEPS / NUMEL


def counted_per_element(ranks: list) -> float:
    return sum(rank[4] for rank in ranks) / STEPS / NUMEL


SMALL = {"stage3_max_live_parameters": WIDTH * WIDTH + 1, "stage3_prefetch_bucket_size": 0}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_two_hosts_train_as_one(train, dtype):
    """Catches sums over hosts in another order than on one host, blocks of another host's ranks at wrong places, and
    bytes that cross between hosts more often than they must."""
    one_host, _ = train(dtype=dtype, zero=SMALL)
    by_hosts, _ = train(2, 2, dtype=dtype, zero=SMALL)
    flat, _ = train(2, 2, dtype=dtype, zero=SMALL, hierarchical_collectives=False)
    for ranks in (by_hosts, flat):
        assert [rank[:3] for rank in ranks] == [rank[:3] for rank in one_host]
    element = 4 if dtype == "fp32" else 2
    # A gather brings each host the other one's half. The backward gathers again all but the last layer, which is still
    # there, and the first one, of whose weight it asks nothing. A reduction sends the sums of one host's terms to
    # owners on host 1, and to owners on host 0 the two terms of host 1; only with bf16 terms.
    gathers = (2 * LAYERS - 2) / LAYERS * element
    reduction = (4 + 2 * 4) / 2 if dtype == "fp32" else 2 * 2
    assert counted_per_element(by_hosts) == pytest.approx(gathers + reduction, rel=0.01)
    assert gathers + reduction <= sent_per_element(by_hosts) <= 1.1 * (gathers + reduction)
    assert counted_per_element(flat) == 0
    assert sent_per_element(by_hosts) <= 0.85 * sent_per_element(flat)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_second_shards_keep_the_backward_inside_the_host(train, dtype):
    """Catches gathers of the backward that cross between hosts, and second shards with values from before the
    update."""
    plain, _ = train(2, 2, dtype=dtype, zero=SMALL)
    second, messages = train(2, 2, dtype=dtype, zero={**SMALL, "zero_hpz_partition_size": 2})
    assert [rank[:3] for rank in second] == [rank[:3] for rank in plain]
    assert "zero_hpz_partition_size" not in messages
    # Each of the layers that the backward gathers again.
    element = 4 if dtype == "fp32" else 2
    saved = (LAYERS - 2) / LAYERS * element
    assert counted_per_element(plain) - counted_per_element(second) == pytest.approx(saved, rel=0.01)
    assert sent_per_element(plain) - sent_per_element(second) >= 0.95 * saved


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_groups_gather_inside_the_host(train, dtype):
    """Catches gathers of a group that cross between hosts, sums that cross more often than they must, and results of
    groups that differ from those of all ranks."""
    plain, _ = train(2, 2, dtype=dtype, zero=SMALL)
    groups, _ = train(2, 2, dtype=dtype, zero=SMALL, shard_ranks=2)
    assert [rank[:3] for rank in groups] == [rank[:3] for rank in plain]
    # The sums of host 0's terms go to host 1, and the results back.
    assert 4 + 4 <= sent_per_element(groups) <= 1.1 * (4 + 4)
    if dtype == "fp32":
        assert sent_per_element(groups) <= 0.75 * sent_per_element(plain)


@pytest.mark.slow
def test_second_shards_that_do_not_fit_or_have_no_effect(train):
    """Catches groups of ranks that span two hosts, and a key that is silently without effect."""
    with pytest.raises(AssertionError, match="expected a divisor of the number of ranks on each host, got 4"):
        train(2, 2, zero={"zero_hpz_partition_size": 4})
    _, messages = train(zero={"zero_hpz_partition_size": 2})
    assert "zero_hpz_partition_size has no effect here" in messages


@pytest.mark.slow
def test_hosts_with_different_numbers_of_ranks_exchange_with_all(train):
    """Catches hosts that are treated as a regular grid although they are not, and a run without a message about it."""
    ranks, messages = train(1, 2)
    assert len({json.dumps(rank[2]) for rank in ranks}) == 1
    assert "collectives by hosts need as many ranks on each host" in messages


@pytest.mark.slow
def test_sums_by_hosts_where_the_order_is_free(train):
    """Catches a reduction in free order that is wrong beyond rounding, or that is not used."""
    ordered, _ = train(2, 2, zero={"stage": 2})
    free, _ = train(2, 2, zero={"stage": 2}, deterministic_reduction=False)
    assert free[0][2] == pytest.approx(ordered[0][2], rel=1e-4)
    # Updated parameters are gathered, and sums of hosts go to their owners on the other one.
    assert counted_per_element(ordered) == pytest.approx(4 + (4 + 2 * 4) / 2, rel=0.01)
    assert counted_per_element(free) == pytest.approx(4 + 4, rel=0.01)
