"""torch.compile at stage 3 and 2 ranks, on a GPT of 10M parameters: step times compared with FSDP2 (also compiled) and
with our eager steps, bytes of gathered pages, and the compile time.

All systems run alternately in the same processes. Inductor compiles the whole model with us (`fullgraph=True`), and
single blocks with FSDP2. Losses are compared before any time is measured. The compile time is the time of the first
forward and backward with an empty cache, compared with the same model without an engine.
"""

import argparse
import time
from functools import partial
from statistics import median

import systems
import torch
import torch.distributed as dist
from common import Block, emit, is_rank, ratio_figures, run_ranks, take_turns

ROWS = 4  # of 64 tokens, per rank
TARGETS = {"FSDP2, compiled": 0.7, "stage 3": 1.0}
PEAK_TARGET = 1.1
COMPILE_TARGET = 1.1
LOSS_TOLERANCE = 1e-4
FACTS = {"model": "10M", "ranks": 2}


def measure_steps(rounds: int, steps: int) -> None:
    import torch._dynamo.utils as dynamo

    config = systems.MODELS["10M"]
    batch = systems.batch_of(config, ROWS)
    quarter = systems.live_quarter(config)
    cores = {
        "stage 3": systems.make_engine(config, batch, 3),
        "stage 3, compiled": systems.make_engine(config, batch, 3),
        "a quarter live": systems.make_engine(config, batch, 3, zero=quarter),
        "a quarter live, compiled": systems.make_engine(config, batch, 3, zero=quarter),
    }
    for name, core in cores.items():
        if "compiled" in name:
            core.compile(compile_kwargs={"fullgraph": True})
    contest = {"FSDP2, compiled": systems.fsdp2(config, batch, compiled=True)}
    contest |= {name: systems.engine_step(core, batch) for name, core in cores.items()}
    losses = {name: torch.stack([step() for _ in range(3)]) for name, step in contest.items()}
    for name, values in losses.items():
        if not torch.allclose(values, losses["stage 3"], rtol=LOSS_TOLERANCE, atol=0):
            raise AssertionError(f"losses of {name}: {values.tolist()}, of stage 3: {losses['stage 3'].tolist()}")
    graphs = dynamo.counters["stats"]["unique_graphs"]
    blocks = take_turns(contest, rounds, steps, barrier=dist.barrier)
    peaks = {name: core._core.pager_stats.peak_live_bytes for name, core in cores.items()}
    if dist.get_rank() != 0:
        return
    for peer, target in TARGETS.items():
        emit(
            "compile",
            **FACTS,
            ours="stage 3, compiled",
            peer=peer,
            **ratio_figures(blocks["stage 3, compiled"], blocks[peer]),
            ours_median_ms=round(median(block.wall_s for block in blocks["stage 3, compiled"]) * 1e3, 1),
            peer_median_ms=round(median(block.wall_s for block in blocks[peer]) * 1e3, 1),
            recompiled=dynamo.counters["stats"]["unique_graphs"] - graphs,
            target=target,
        )
    for name in ("stage 3", "a quarter live"):
        compiled, eager = peaks[f"{name}, compiled"], peaks[name]
        ratio = round(compiled / eager, 3)
        emit(
            "compile_peak", **FACTS, ours=f"{name}, compiled", peak_bytes=compiled, eager_bytes=eager, ratio=ratio,
            target=PEAK_TARGET,
        )  # fmt: skip


def first_pass(model: torch.nn.Module, batch: torch.Tensor) -> Block:
    """The first forward and backward, which compile the model, with an empty cache. Processor time is that of this
    process: without the C++ compiler, which runs in others."""
    torch._dynamo.reset()
    with torch._inductor.utils.fresh_cache():
        model.compile(fullgraph=True)
        begin, cpu_begin = time.perf_counter(), time.process_time()
        model(batch).backward()
        return Block(time.perf_counter() - begin, time.process_time() - cpu_begin, 0)


def measure_compiling(rounds: int) -> None:
    import torch._inductor.utils  # noqa: F401

    config = systems.MODELS["10M"]
    batch = systems.batch_of(config, ROWS)
    passes: dict[str, list[Block]] = {"plain": [], "stage 3": []}
    for turn in range(rounds + 1):
        for name in sorted(passes, reverse=turn % 2 == 1):
            if name == "plain":
                model = systems.Gpt(config)
            else:
                core = systems.make_engine(config, batch, 3)
                model = core.module
            dist.barrier()
            spent = first_pass(model, batch)
            if turn > 0:  # the first turn imports the compiler
                passes[name].append(spent)
            if name != "plain":
                core.step()
                core.destroy()
    if dist.get_rank() == 0:
        ours, plain = (passes[name] for name in ("stage 3", "plain"))
        emit(
            "compile_time",
            **FACTS,
            **ratio_figures(ours, plain),
            ours_s=round(median(block.wall_s for block in ours), 2),
            plain_s=round(median(block.wall_s for block in plain), 2),
            ours_min_s=round(min(block.wall_s for block in ours), 2),
            plain_min_s=round(min(block.wall_s for block in plain), 2),
            ours_cpu_s=round(min(block.cpu_s for block in ours), 2),
            plain_cpu_s=round(min(block.cpu_s for block in plain), 2),
            target=COMPILE_TARGET,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    contests = {"steps": partial(measure_steps, rounds=11, steps=4), "compiling": partial(measure_compiling, rounds=7)}
    parser.add_argument("--contest", choices=contests, help="only this one")
    arguments = parser.parse_args()
    wanted = [arguments.contest] if arguments.contest else list(contests)
    if not is_rank():
        for contest in wanted:
            run_ranks(2, ["--contest", contest])
        return
    dist.init_process_group("gloo")
    for contest in wanted:
        contests[contest]()
    dist.barrier()


if __name__ == "__main__":
    main()
