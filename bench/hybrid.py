"""Hybrid sharding on CPU ranks: the step with state divided over the ranks of a host (zeropage.shard_ranks), compared
with state divided over all ranks, at stages 2 and 3, in fp32 and bf16.

Two hosts with two ranks each are network namespaces with a link between them, which needs root. --rate limits the
link. Both engines take turns in the same processes, and their losses are compared first. Bytes are those that both
hosts send per step, by the counters of the link.

    {"bench": "hybrid", "stage": 3, "dtype": "fp32", "ratio": ..., "bytes_ratio": ..., ...}
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from common import emit, is_rank, ratio_figures, take_turns

HOSTS, RANKS = 2, 2  # ranks of each host
ROWS = 4  # of 64 tokens, per rank
PORT = "29500"


def run(*words: str) -> None:
    subprocess.run(words, check=True)


def make_link(names: list[str], rate: str | None) -> None:
    for name in names:
        run("ip", "netns", "add", name)
    run(
        "ip", "link", "add", "eth0", "netns", names[0], "type", "veth", "peer", "name", "eth0", "netns", names[1],
    )  # fmt: skip
    for number, name in enumerate(names):
        run("ip", "-n", name, "addr", "add", f"10.214.0.{number + 1}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            run("ip", "-n", name, "link", "set", device, "up")
        if rate is not None:
            run(
                "ip", "netns", "exec", name, "tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", rate, "burst",
                "256kb", "latency", "50ms",
            )  # fmt: skip


def start_ranks(names: list[str], arguments: list[str]) -> list[subprocess.Popen]:
    ranks = []
    for rank in range(HOSTS * RANKS):
        own = {
            "RANK": rank, "LOCAL_RANK": rank % RANKS, "WORLD_SIZE": HOSTS * RANKS, "LOCAL_WORLD_SIZE": RANKS,
            "MASTER_ADDR": "10.214.0.1", "MASTER_PORT": PORT, "OMP_NUM_THREADS": 1, "ZEROPAGE_DEVICE": "cpu",
            "GLOO_SOCKET_IFNAME": "eth0",
        }  # fmt: skip
        environ = {**os.environ, **{name: str(value) for name, value in own.items()}}
        words = ["ip", "netns", "exec", names[rank // RANKS], sys.executable, sys.argv[0], *arguments]
        ranks.append(subprocess.Popen(words, env=environ))
    return ranks


def run_on_hosts(arguments: list[str], rate: str | None) -> None:
    names = [f"zpb{os.getpid()}h{number}" for number in range(HOSTS)]
    ranks: list[subprocess.Popen] = []
    try:
        make_link(names, rate)
        ranks = start_ranks(names, arguments)
        while any(rank.poll() is None for rank in ranks):
            if any(rank.poll() for rank in ranks):
                raise SystemExit("a rank failed; its message is above")
            time.sleep(0.05)
        if any(rank.returncode for rank in ranks):
            raise SystemExit("a rank failed; its message is above")
    finally:
        for each in ranks:
            each.kill()
            each.wait()
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False)


def sent_bytes() -> float:
    """Of this host, to the other one; this rank's share, so that the sum over all ranks is that of both hosts."""
    lines = [line.split() for line in Path("/proc/net/dev").read_text().splitlines()]
    return sum(int(words[9]) for words in lines if words[0].startswith("eth")) / RANKS


def measure(stage: int, dtype: str, options: argparse.Namespace) -> None:
    import systems
    import torch
    import torch.distributed as dist

    import zeropage

    torch.set_num_threads(1)
    config = systems.MODELS[options.model]
    batch = systems.batch_of(config, ROWS)

    def engine(shard_ranks: int) -> zeropage.ZeropageEngine:
        torch.manual_seed(0)
        made, *_ = zeropage.initialize(
            model=systems.Gpt(config),
            config={
                "train_micro_batch_size_per_gpu": ROWS,
                "gradient_clipping": 0,
                "zero_optimization": {"stage": stage},
                "optimizer": {"type": "AdamW", "params": systems.ADAMW},
                "zeropage": {"shard_ranks": shard_ranks},
                **({"bf16": {"enabled": True}} if dtype == "bf16" else {}),
            },
        )
        return made

    engines = {"groups": engine(RANKS), "all": engine(0)}
    contest = {name: systems.engine_step(core, batch) for name, core in engines.items()}
    losses, sent = {}, {}
    for name, step in contest.items():
        dist.barrier()
        before = sent_bytes()
        dist.barrier()
        losses[name] = torch.stack([step() for _ in range(3)])
        dist.barrier()
        counted = torch.tensor(sent_bytes() - before)
        dist.all_reduce(counted)
        sent[name] = counted.item()
    if not torch.equal(losses["groups"], losses["all"]):
        raise AssertionError(f"losses: {losses}")
    blocks = take_turns(contest, options.rounds, options.steps, barrier=dist.barrier)
    if dist.get_rank() == 0:
        emit(
            "hybrid", stage=stage, dtype=dtype, model=options.model, hosts=HOSTS, ranks=HOSTS * RANKS,
            rate=options.rate, **ratio_figures(blocks["groups"], blocks["all"]),
            groups_median_ms=round(median(block.wall_s for block in blocks["groups"]) * 1e3, 1),
            all_median_ms=round(median(block.wall_s for block in blocks["all"]) * 1e3, 1),
            bytes_ratio=round(sent["groups"] / sent["all"], 3),
        )  # fmt: skip
    for core in engines.values():
        core.destroy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="10M", help="10M or 100M")
    parser.add_argument("--rate", help="of the link, as tc spells it: 1gbit; default: that of the memory")
    parser.add_argument("--stages", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--dtypes", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=3)
    options = parser.parse_args()
    if not is_rank():
        run_on_hosts(sys.argv[1:], options.rate)
        return
    import torch.distributed as dist

    dist.init_process_group("gloo")
    for dtype in options.dtypes:
        for stage in options.stages:
            measure(stage, dtype, options)


if __name__ == "__main__":
    main()
