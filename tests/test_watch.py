"""What a run reports about itself: times, memory, collectives, operations, the metrics file, the trace, and the stage
it chose."""

import json
from typing import Any

import pytest
import torch
from torch import nn

import zeropage
from zeropage import _C, automatic
from zeropage.testing import run_ranks

CONFIG: dict[str, Any] = {
    "train_batch_size": 4,
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0, "stage3_max_live_parameters": 300},
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-2}},
    "zeropage": {"page_numel": 1, "timeout_ms": 20_000},
}


def net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 16))


def train(steps: int, sections: dict):
    """Steps of a small net whose pages are gathered and evicted; `zeropage` in sections is added to the defaults."""
    own = {**CONFIG["zeropage"], **sections.pop("zeropage", {})}
    engine, *_ = zeropage.initialize(model=net(), config={**CONFIG, **sections, "zeropage": own})
    for _ in range(steps):
        engine.backward(engine(torch.ones(engine.train_micro_batch_size_per_gpu(), 16)).square().mean())
        engine.step()
    return engine


def train_two(steps: int, **sections):
    """Two ranks; rank 0's engine is destroyed last of all, since what ends with it is printed then."""

    def run(rank: int, communicator):
        train(steps, json.loads(json.dumps(sections))).destroy()

    run_ranks(2, run)


def lines_with(text: str, word: str) -> list[str]:
    return [line for line in text.splitlines() if word in line]


def test_wall_clock_and_memory_breakdown(capfd, tmp_path):
    """Catches lines that are printed at other steps than those of steps_per_print, from other ranks, or with parts
    larger than the whole."""
    csv = {"enabled": True, "output_path": str(tmp_path), "job_name": "job"}
    train_two(5, wall_clock_breakdown=True, memory_breakdown=True, steps_per_print=2, csv_monitor=csv)
    printed = capfd.readouterr().err
    times = lines_with(printed, "mean of 2")
    assert [line.split("step ")[1].split(",")[0] for line in times] == ["2", "4"]
    whole, *parts = [float(text.split(" ms")[0].split()[-1]) for text in times[1].replace("=", "+").split("+")]
    assert sum(parts[:4]) == pytest.approx(whole, abs=0.5)
    memory = lines_with(printed, "memory after")
    assert [line.split("memory after ")[1].split(":")[0] for line in memory] == ["forward", "backward", "step"] * 2
    assert "optimizer 64.0 KiB" in memory[0] and "process" in memory[0]
    assert (tmp_path / "job" / "Train_Samples_elapsed_time_ms_backward.csv").read_text().count("\n") == 6


def test_comms_logger(capfd):
    """Catches transfers that are missing from the table, and operations that were not requested."""
    train_two(
        2,
        comms_logger={
            "enabled": True,
            "prof_all": False,
            "prof_ops": ["reduce_scatter", "copy"],
            "verbose": True,
            "debug": True,
        },
    )
    printed = capfd.readouterr().err
    table = printed[printed.index("collectives of rank 0") :]
    assert {line.split()[0] for line in table.splitlines()[2:] if line} == {"reduce_scatter", "copy"}
    counted = sum(int(line.split()[2]) for line in lines_with(table, "reduce_scatter"))
    assert counted == 2 * 4, "two steps of four pages"
    assert len(lines_with(printed, "gradients of page")) == counted, "a verbose line for each"


def test_flops_profiler(tmp_path):
    """Catches operations of other steps or phases, and pages that the counter's mode does not see."""
    path = tmp_path / "flops.txt"
    train(3, {"flops_profiler": {"enabled": True, "profile_step": 2, "output_file": str(path)}})
    text = path.read_text()
    forward = 2 * 2 * 4 * 16 * 16  # two layers, a multiplication and an addition
    assert f"forward   {forward / 1000:.3g} kFLOP" in text
    backward = 2 * forward - forward // 2  # the first layer's input needs no gradient
    assert f"backward  {backward / 1000:.3g} kFLOP" in text
    assert "Sequential.2  2.05 kFLOP" in text and "step 3 took" in text


def test_metrics_file(tmp_path):
    """Catches a missing step, a line that is not JSON, and counters that do not advance."""
    path = tmp_path / "new" / "metrics.jsonl"
    train_two(11, zeropage={"metrics_file": str(path)})
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [r["record"] for r in records].count("run") == 1 and records[0]["world_size"] == 2
    steps = [r for r in records if r["record"] == "step"]
    assert [r["step"] for r in steps] == list(range(1, 12)) and steps[-1]["samples"] == 44
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert all(
        r["seconds"]["whole"] >= r["seconds"]["forward"] + r["seconds"]["backward"] + r["seconds"]["step"]
        for r in steps
    )
    assert steps[-1]["faults"] > steps[0]["faults"] > 0 and steps[-1]["evictions"] > 0
    assert steps[0]["bytes"]["optimizer"][0] > 0
    pages = [r for r in records if r["record"] == "pages"]
    assert [r["step"] for r in pages] == [1, 10, 11]
    assert sum(faults for _, _, faults, _ in pages[-1]["pages"]) == steps[-1]["faults"]
    assert "0.weight" in pages[-1]["pages"][0][0]


def test_not_a_number_is_null(tmp_path):
    """Catches NaN in the file, which no JSON reader but Python's takes."""
    path = tmp_path / "metrics.jsonl"
    engine = train(1, {"zeropage": {"metrics_file": str(path)}})
    engine.backward(engine(torch.full((4, 16), torch.inf)).square().mean())
    engine.step()
    last = json.loads(path.read_text().splitlines()[-1], parse_constant=pytest.fail)
    assert last["loss"] is None


@pytest.mark.parametrize("by", ["key", "variable"])
def test_trace(by, tmp_path, monkeypatch):
    """Catches a trace without what makes the step slow: which operator waited for which page, and how gradients were
    sent."""
    trace: dict[str, Any] = {"first_step": 2, "steps": 2}
    if by == "key":
        trace["file"] = str(tmp_path / "trace.json")
    else:
        monkeypatch.setenv("ZEROPAGE_TRACE", str(tmp_path / "trace.json"))
    train_two(4, zeropage={"trace": trace})
    for rank in range(2):
        events = json.loads((tmp_path / f"trace.rank{rank}.json").read_text())
        assert {event["pid"] for event in events} == {rank}
        spans = [event for event in events if event["ph"] in "Xb"]
        assert sum(event["name"] == "step" for event in spans) == 2
        kinds = {event["cat"] for event in spans}
        assert kinds >= {"forward", "backward", "step", "operator", "fault", "gather", "reduce", "exchange", "update"}
        faults = [event for event in spans if event["cat"] == "fault"]
        assert any(event["name"].startswith("aten::") and "2.weight" in event["args"]["page"] for event in faults)
        assert any("gradients of page" in event["name"] for event in spans if event["cat"] == "reduce")
        operator = next(event for event in spans if event["cat"] == "operator")
        assert any(
            operator["ts"] <= e["ts"] and e["ts"] + e["dur"] <= operator["ts"] + operator["dur"] + 0.01 for e in faults
        )


def test_nothing_is_observed_unless_asked_for():
    """Catches a run that spends time on figures that were not requested."""
    engine = train(1, {})
    assert engine._core.span_seconds() == {} and engine.comms_summary() == "" and not engine.monitor.enabled


@pytest.mark.parametrize(("free", "stage"), [(1 << 30, 1), (15_000, 2), (2_000, 3)])
def test_stage_auto(free, stage, capfd, monkeypatch):
    """Catches a choice that is not made from this model and this memory, not reported, or not written into the
    configuration."""
    monkeypatch.setattr(automatic, "free_memory", lambda device, ranks: _C.FreeMemory(free, free, True))

    def run(rank: int, communicator):
        engine = train(1, {"zero_optimization": {"stage": "auto", "stage3_param_persistence_threshold": 0}})
        assert engine.zero_optimization_stage() == stage
        assert engine.config["zero_optimization"]["stage"] == stage

    run_ranks(2, run)
    messages = lines_with(capfd.readouterr().err, '"auto"')
    assert len(messages) == 1 and f'"auto" is {stage}' in messages[0]


def test_everything_auto(capfd, monkeypatch):
    """Catches "auto" of offload, buckets or the batch that does not become a value of the engine's configuration, or is
    not reported."""
    monkeypatch.setattr(automatic, "free_memory", lambda device, ranks: _C.FreeMemory(2_500, 1 << 30, False))
    buckets = dict.fromkeys(
        ("reduce_bucket_size", "allgather_bucket_size", "stage3_prefetch_bucket_size", "stage3_max_live_parameters"),
        "auto",
    )
    zero = {"stage": "auto", "offload_optimizer": {"device": "auto"}, "offload_param": {"device": "auto"}, **buckets}

    def run(rank: int, communicator):
        engine = train(1, {"train_micro_batch_size_per_gpu": "auto", "zero_optimization": zero})
        chosen = engine.config["zero_optimization"]
        assert chosen["stage"] == 3 and engine.train_micro_batch_size_per_gpu() == 2
        assert chosen["offload_optimizer"]["device"] == "cpu"
        assert all(isinstance(chosen[name], int) for name in buckets)
        assert chosen["reduce_bucket_size"] < 100 and chosen["stage3_max_live_parameters"] == 512
        assert engine.memory_report().host[rank]["optimizer"] > 0

    run_ranks(2, run)
    assert len(lines_with(capfd.readouterr().err, '"auto"')) == 8


def test_free_memory_is_this_ranks_part():
    """Catches ranks of one host that each count on all of its memory."""
    alone = automatic.free_memory(torch.device("cpu"), 1)
    assert 0 < automatic.free_memory(torch.device("cpu"), 4).device_bytes < alone.host_bytes / 2


def test_a_live_limit_above_every_size(tmp_path):
    """Catches a limit that overflows when it is counted in bytes, and then keeps nothing resident."""
    sections = {"zero_optimization": {**CONFIG["zero_optimization"], "stage3_max_live_parameters": 2**62}}
    own = {**CONFIG["zeropage"], "metrics_file": str(tmp_path / "run.jsonl")}
    engine = train(2, {**sections, "zeropage": own})
    engine.destroy()
    run = json.loads((tmp_path / "run.jsonl").read_text().splitlines()[0])
    assert run["live_limit_bytes"] == 2**63 - 1
