"""`zeropage.plan`, and DeepSpeed's estimators."""

import json

import pytest
import torch

import zeropage
from zeropage.runtime.zero import stage3, stage_1_and_2
from zeropage.testing import run_ranks

GIB = 2**30


def test_a_module_is_planned_with_its_parameters():
    """Catches frozen parameters counted as trained, or persistent ones as sharded."""
    model = torch.nn.Sequential(torch.nn.Linear(1000, 500), torch.nn.Linear(500, 1000))
    model[1].weight.requires_grad_(False)
    plan = zeropage.plan(model, num_gpus=2, precision="fp32")
    assert plan.model["parameters"] == 1_001_500
    assert plan.model["trainable"] == 501_500
    stage_3 = next(row for row in plan.rows if row["stage"] == 3)
    assert stage_3["parameters_bytes"] == 4 * (500_000 + 1_500)
    assert stage_3["optimizer_bytes"] == 8 * 250_750
    assert "1,001,500 parameters" in str(plan)


def test_the_recommended_configuration_trains():
    """Catches a recommended configuration that initialize refuses."""
    plan = zeropage.plan("7B", num_gpus=1, device="H100", device_memory="200GB")
    assert plan.rows[plan.recommendation["row"]]["stage"] == 0
    engine, *_ = zeropage.initialize(model=torch.nn.Linear(4, 4), config=plan.config)
    engine.backward(engine(torch.ones(1, 4, dtype=torch.bfloat16)).float().sum())
    engine.step()
    engine.destroy()


def layers() -> torch.nn.Module:
    return torch.nn.Sequential(*(torch.nn.Linear(1024, 1024) for _ in range(4)))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_plan_counts_what_the_engine_counts(ranks, precision):
    """Catches a formula that differs from the bytes an engine holds, at any stage; an engine has padding besides."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    rows = [
        row for row in zeropage.plan(layers(), num_gpus=ranks, precision=precision).rows if row["offload"] == "none"
    ]
    assert [row["stage"] for row in rows] == [0, 1, 2, 3]

    def held(rank, communicator):
        reports = []
        for row in rows:
            engine, *_ = zeropage.initialize(model=layers(), config=row["config"])
            engine.backward(engine(torch.ones(1, 1024, dtype=dtype)).float().sum())
            in_hand = engine.memory_report().ranks[rank]["gradients"]  # one rank keeps them until the step alone
            engine.step()
            reports.append({**engine.memory_report().ranks[rank], "gradients": in_hand})
            engine.destroy()
        return reports

    for reports in run_ranks(ranks, held):
        for row, report in zip(rows, reports, strict=True):
            for kind in ("parameters", "gradients", "optimizer"):
                assert report[kind] == pytest.approx(row[f"{kind}_bytes"], rel=0.02), (row["stage"], kind)
            assert report["frames"] <= row["frames_bytes"] + row["buckets_bytes"] + 2**16, row["stage"]


RATES = (
    "device_memory", "flops", "device_memory_rate", "device_link_rate", "host_link_rate", "network_rate",
    "host_memory", "host_memory_rate", "disk", "disk_read_rate", "disk_write_rate",
)  # fmt: skip
TIMES = ("device_latency", "network_latency", "overlap")


def test_second_shards_of_one_host_are_planned_as_they_are_made(tmp_path):
    """Catches second shards in the plan of CPU ranks on one host, whose engine makes none, and a plan that leaves the
    key out without a word."""
    figures = {"name": "processor", "device": "cpu", **dict.fromkeys(RATES, 1e12), **dict.fromkeys(TIMES, 1e-6)}
    machine = tmp_path / "machine.json"
    machine.write_text(json.dumps(figures))
    plan = zeropage.plan(layers(), num_gpus=2, device=machine, precision="fp32", hpz_partition_size=2)
    assert "CPU ranks of one host have no second shards" in str(plan)
    row = next(row for row in plan.rows if row["stage"] == 3 and row["offload"] == "none")
    config = {**row["config"], "zero_optimization": {"stage": 3, "zero_hpz_partition_size": 2}}

    def held(rank, communicator):
        engine, *_ = zeropage.initialize(model=layers(), config=config)
        engine.backward(engine(torch.ones(1, 1024)).sum())
        engine.step()
        memory = engine.memory_report()
        engine.destroy()
        return memory.ranks[rank]["parameters"], memory.formula.parameters

    for counted, formula in run_ranks(2, held):
        assert counted == pytest.approx(row["parameters_bytes"], rel=0.02)
        assert formula == pytest.approx(row["parameters_bytes"], rel=0.02)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: zeropage.plan("seven"), 'got "seven"'),
        (lambda: zeropage.plan("7B", device="toaster"), "expected one of H100"),
        (lambda: zeropage.plan("7B", device_memory="80GB"), "name one"),
        (lambda: zeropage.plan("7B", device="H100", colour="red"), "device_memory"),
        (lambda: zeropage.plan("7B", num_gpus=0), "devices per host"),
        (lambda: zeropage.plan([1, 2]), "got int"),
    ],
)
def test_meaningless_arguments_are_refused(call, words):
    """Catches meaningless arguments that are not refused."""
    with pytest.raises(zeropage.errors.ConfigError, match=words):
        call()


def test_a_path_is_read(tmp_path):
    """Catches a folder of a model whose config.json is not found or read wrongly."""
    shape = {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024, "vocab_size": 50257}
    (tmp_path / "config.json").write_text(json.dumps(shape))
    assert zeropage.plan(tmp_path).model["parameters"] == 124_439_808


# The figures that DeepSpeed's documentation prints for a model of 2851M parameters with a largest layer of 32M, one
# node of 8 GPUs.
@pytest.mark.parametrize(
    ("offload", "offload_params", "zero_init", "host_gib", "gpu_gib"),
    [
        (True, True, True, 71.71, 0.12),
        (True, True, False, 127.48, 0.12),
        (True, False, True, 63.74, 0.79),
        (True, False, False, 127.48, 0.79),
        (False, False, True, 1.47, 6.10),
        (False, False, False, 127.48, 6.10),
    ],
)
def test_stage_3_estimates_are_the_published_ones(offload, offload_params, zero_init, host_gib, gpu_gib):
    """Catches estimates for stage 3 that differ from DeepSpeed's documentation."""
    host, gpu, layer = stage3.estimate_zero3_model_states_mem_needs(
        2_851_598_336, 32_899_072, 8, cpu_offload=offload, cpu_offload_params=offload_params, zero_init=zero_init
    )
    assert host / GIB == pytest.approx(host_gib, rel=0.005)
    assert gpu / GIB == pytest.approx(gpu_gib, abs=0.01)
    assert layer == 4 * 32_899_072


def test_stage_2_estimates_are_the_published_ones():
    """Catches estimates for stage 2 that differ from DeepSpeed's documentation."""
    host, gpu = stage_1_and_2.estimate_zero2_model_states_mem_needs(2_851_598_336, 8)
    assert host / GIB == pytest.approx(127.48, rel=0.001)
    assert gpu / GIB == pytest.approx(5.31, abs=0.01)
    host, gpu = stage_1_and_2.estimate_zero2_model_states_mem_needs(2_851_598_336, 8, cpu_offload=False)
    assert host / GIB == pytest.approx(127.48, rel=0.001)
    assert gpu / GIB == pytest.approx(15.93, abs=0.01)


def test_estimates_of_a_model_are_printed(capsys):
    """Catches a shared weight that is counted twice, and a largest layer that includes its children."""
    model = torch.nn.Sequential(
        torch.nn.Embedding(4000, 1000), torch.nn.Linear(1000, 4000, bias=False), torch.nn.Linear(1000, 3000)
    )
    model[1].weight = model[0].weight
    stage3.estimate_zero3_model_states_mem_needs_all_live(model, num_gpus_per_node=2, num_nodes=1)
    printed = capsys.readouterr().out
    assert "HW: Setup with 1 node, 2 GPUs per node." in printed
    assert "SW: Model with 7M total params, 4M largest layer params." in printed
    assert printed.count("offload_param=") == 6
    stage_1_and_2.estimate_zero2_model_states_mem_needs_all_live(model)
    printed = capsys.readouterr().out
    assert "SW: Model with 7M total params.\n" in printed
    assert printed.count("offload_optimizer=") == 2
    zeropage.runtime.zero.stage3.estimate_zero3_model_states_mem_needs_all_cold(10**9, 10**7)
    assert "1000M total params" in capsys.readouterr().out
