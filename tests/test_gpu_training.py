"""Training on an accelerator as scripts do it: every stage with every kind of offload, compared with the engine on the
CPU, whose bits it has on the simulated device, under 24 seeds of delays; checkpoints, Init, second streams, and two
ranks of the launcher."""

import contextlib
import copy
import functools
import os
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import accelerator
import pytest
import simulated_device
import torch
from test_launcher import COMMAND, environment
from torch import nn
from training import SmallNet, config_of, flat_parameters, small_net, token_batch

import zeropage

pytestmark = pytest.mark.gpu

STEPS = 3
SEEDS = 24
SMALL: dict[str, Any] = {"page_numel": 4096}


def bound() -> float:
    """By how much results may differ from the CPU's after a few updates of lr 1e-2."""
    return 0.0 if accelerator.SIMULATED else 5e-3


def delays(seed: int) -> contextlib.AbstractContextManager[None]:
    return simulated_device.delays(seed) if accelerator.SIMULATED else contextlib.nullcontext()


def assert_like(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert (found - expected).abs().max().item() <= bound()


def sections_of(place: str) -> dict[str, Any]:
    """State outside of the device, and when it is updated."""
    zero: dict[str, Any] = {"stage3_max_live_parameters": 9000}
    own = dict(SMALL)
    if place != "resident":
        zero["offload_optimizer"] = {
            "device": "cpu",
            "pin_memory": place != "pageable",
            "ratio": 0.5 if place == "half" else 1.0,
        }
        own |= (
            {"speculation_bytes": 1 << 20}
            if place == "speculation"
            else {"offloaded_update": "device" if place == "streamed" else "host"}
        )
    if place == "parameters":
        zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    return {"zero_optimization": zero, "zeropage": own}


def config_for(stage: int, place: str, precision: str = "fp32", accumulation: int = 1) -> dict[str, Any]:
    sections = sections_of(place)
    if precision != "fp32":
        sections[precision] = {"enabled": True}
    return config_of(stage, accumulation=accumulation, clipping=0.0, **sections)


def make_engine(
    config: dict[str, Any], device: str | torch.device | None = None, model: nn.Module | None = None
) -> Any:
    return zeropage.initialize(model=model or small_net(), config=config, device=device)[0]


def train(engine: Any, steps: range = range(STEPS)) -> torch.Tensor:
    """Batches that the accumulation steps share; flat fp32 parameters on the CPU."""
    parts = engine.gradient_accumulation_steps()
    for step in steps:
        for part in range(parts):
            tokens, targets = (x.chunk(parts)[part].to(engine.device, non_blocking=True) for x in token_batch(step))
            engine.backward(engine(tokens, targets))
            engine.step()
    return flat_parameters(engine.module).cpu()


@functools.cache
def on_the_cpu(precision: str, accumulation: int, sharded: bool) -> torch.Tensor:
    """The expected result for every place. With accumulation stages 0 and 1 add in another order than stages 2 and
    3."""
    return train(make_engine(config_for(3 if sharded else 0, "resident", precision, accumulation), "cpu"))


PLACES = ("resident", "pinned", "pageable", "half", "speculation", "streamed")
CASES = [(stage, place) for stage in range(4) for place in PLACES]
assert len(CASES) == SEEDS


@pytest.mark.parametrize("seed", range(SEEDS))
def test_delays_change_no_bit(seed: int):
    """Catches a stream or a host that uses something before it is there, in every stage and place, and what depends on
    times."""
    stage, place = CASES[seed]
    if stage == 3 and place == "half":
        place = "parameters"
    precision, accumulation = ("fp32", "bf16")[seed // 2 % 2], 1 + seed % 2
    with delays(seed):
        engine = make_engine(config_for(stage, place, precision, accumulation))
        assert engine.device == accelerator.device()
        found = train(engine)
        accelerator.check()
        engine.destroy()
    assert_like(found, on_the_cpu(precision, accumulation, stage > 1))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_parameters_on_a_drive_with_state_in_host_memory(precision: str, tmp_path: Path):
    """Catches an update that begins on the device with parameters that are in no memory."""
    config = config_for(3, "resident", precision)
    drive = {"device": "nvme", "nvme_path": str(tmp_path), "max_in_cpu": 0}
    config["zero_optimization"] |= {"offload_param": drive, "offload_optimizer": {"device": "cpu"}}
    assert_like(train(make_engine(config)), on_the_cpu(precision, 1, True))


@pytest.mark.parametrize("place", ("resident", "pinned"))
@pytest.mark.parametrize("stage", range(4))
def test_no_norm_is_computed_on_the_device(stage: int, place: str):
    """Catches an update that waits for squares that are never summed, and a norm of leftover values on the device."""
    config = config_for(stage, place, "bf16")
    config["zero_optimization"]["compute_grad_norm"] = False
    config["bf16"]["check_grad_overflow"] = False
    engine = make_engine(config)
    found = train(engine)
    assert engine.get_global_grad_norm() is None
    accelerator.check()
    engine.destroy()
    assert_like(found, on_the_cpu("bf16", 1, stage > 1))


@pytest.mark.parametrize(("stage", "place"), [(0, "resident"), (1, "pinned"), (2, "pageable"), (3, "parameters")])
def test_muon_sees_whole_parameters(stage: int, place: str):
    """Catches a matrix that is orthogonalized before its gradient or its masters have arrived."""
    params = {"lr": 0.02, "adam_lr": 1e-3, "ns_method": "standard", "ns_dtype": "fp32"}
    section = {"optimizer": {"type": "Muon", "params": params}}
    with delays(stage):
        engine = make_engine({**config_for(stage, place, "bf16"), **section})
        found = train(engine)
        accelerator.check()
        engine.destroy()
    assert_like(found, train(make_engine({**config_for(stage, "resident", "bf16"), **section}, "cpu")))


@pytest.mark.parametrize("stage", range(4))
def test_added_parameters_train_on_the_device(stage: int):
    """Catches a new layer that stays on the host, or that torch does not permit to be moved."""
    found = []
    for device in (None, "cpu"):
        engine = make_engine(config_for(stage, "resident"), device)
        torch.manual_seed(0)
        engine.module.extra = nn.Linear(4, 4)
        engine.add_parameters(engine.module.extra.parameters())
        assert all(parameter.device == engine.device for parameter in engine.module.parameters())
        for _ in range(2):
            engine.backward(engine.module.extra(torch.ones(1, 4, device=engine.device)).square().sum())
            engine.step()
        found.append(flat_parameters(engine.module).cpu())
        accelerator.check()
        engine.destroy()
    assert_like(*found)


def test_compiled_code_fetches_its_pages():
    """Catches compiled code that keeps all pages on the device, or uses one before it has arrived."""
    peaks = []
    for compiled in (False, True):
        with delays(3):
            engine = make_engine(config_for(3, "parameters"))
            if compiled:
                engine.compile(backend="aot_eager", compile_kwargs={"fullgraph": True})
            assert_like(train(engine), on_the_cpu("fp32", 1, True))
            accelerator.check()
            peaks.append(engine._core.pager_stats.peak_live_bytes)
            engine.destroy()
    assert 0 < peaks[1] <= 1.1 * peaks[0]


@pytest.mark.parametrize("place", ["resident", "parameters"])
@pytest.mark.parametrize("stage", [0, 3])
def test_a_checkpoint_goes_from_device_to_cpu_and_back(stage: int, place: str, tmp_path: Path):
    """Catches state that is saved before it has arrived, or that is read into another place than it is used from."""
    config = config_for(stage, place if stage == 3 else "resident", "bf16")
    on_device = make_engine(config)
    train(on_device, range(2))
    on_device.save_checkpoint(tmp_path / "device")
    on_device.destroy()
    on_cpu = make_engine(config, "cpu")
    on_cpu.load_checkpoint(tmp_path / "device")
    train(on_cpu, range(2, 4))
    on_cpu.save_checkpoint(tmp_path / "cpu")
    again = make_engine(config)
    again.load_checkpoint(tmp_path / "cpu")
    whole = train(make_engine(config, "cpu"), range(6))
    assert_like(train(again, range(4, 6)), whole)


@pytest.mark.parametrize("pinned", [True, False])
@pytest.mark.parametrize("stage", range(4))
def test_states_go_to_the_host_and_back_between_steps(stage: int, pinned: bool):
    """Catches state that is moved before its last update, or used before it has been copied back."""
    config = config_for(stage, "resident", "bf16")
    engine = make_engine(config)
    train(engine, range(2))
    engine.offload_states(pin_memory=pinned)
    engine.reload_states()
    assert_like(train(engine, range(2, 4)), train(make_engine(config, "cpu"), range(4)))


@pytest.mark.parametrize("place", ["resident", "parameters"])
def test_a_model_is_built_in_shards(place: str):
    """Catches values of zero.Init that are made on one device and trained on another."""
    config = config_for(3, place, "bf16")

    def build(device: str | None) -> Any:
        torch.manual_seed(0)
        with zeropage.zero.Init(config_dict_or_path=config):
            model = SmallNet()
        return make_engine(config, device, model)

    found = train(build(None))
    assert_like(found, train(make_engine(config, "cpu", small_net())))


class TwoStreams(nn.Module):
    """Its branches run in parallel, one on a separate stream."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = small_net()
        self.left, self.right = nn.Linear(8, 64), nn.Linear(8, 64)

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        x = targets.float()[:, :1].expand(-1, 8) / 50
        if tokens.is_cpu:
            return self.inner(tokens, targets) + (self.left(x) - self.right(x)).square().mean()
        main, side = torch.accelerator.current_stream(), torch.Stream(tokens.device)
        side.wait_stream(main)
        with side:
            right = self.right(x)
        left = self.left(x)
        main.wait_stream(side)
        for tensor, stream in ((x, side), (right, main)):
            tensor.record_stream(stream)
        return self.inner(tokens, targets) + (left - right).square().mean()


@pytest.mark.parametrize("stage", range(4))
def test_a_model_with_a_second_stream(stage: int):
    """Catches gradients and parameters of operators on another stream, used or overwritten before those are done."""
    torch.manual_seed(1)
    model = TwoStreams()
    config = config_for(stage, "resident")
    expected = train(make_engine(config, "cpu", copy.deepcopy(model)))
    for seed in range(3):
        with delays(seed):
            assert_like(train(make_engine(config, None, copy.deepcopy(model))), expected)


CASES_OF_RANKS = 8  # all stages, with the optimizer state on the device and on the host
SCRIPT = """
    import sys; sys.path[:0] = {paths!r}
    import accelerator; accelerator.load_if_told()
    import torch; torch.set_num_threads(1)
    import zeropage
    from training import config_of, flat_parameters, part_of_batch, small_net, token_batch

    rank = int(__import__("os").environ["RANK"])
    for case in range({cases}):
        zero = {{"stage3_max_live_parameters": 9000}}
        if case > 3:
            zero["offload_optimizer"] = {{"device": "cpu"}}
        config = config_of(case % 4, clipping=0.0, zero_optimization=zero, zeropage={{"page_numel": 4096}})
        engine, *_ = zeropage.initialize(model=small_net(), config=config)
        for step in range(3):
            engine.backward(engine(*(x.to(engine.device) for x in part_of_batch(token_batch(step), 2, rank))))
            engine.step()
        torch.save(flat_parameters(engine.module).cpu(), f"{folder}/{{rank}}-{{case}}.pt")
        engine.destroy()
    print("devices", engine.device, torch.distributed.get_backend(), flush=True)
    accelerator.check()
"""


def run_on_two_devices(program: str, folder: Path, gloo: bool, **values: Any) -> None:
    """Runs a program with the launcher, each rank on its own device, which it prints after "devices". `values`, the
    paths of modules and the folder are filled in."""
    if not accelerator.SIMULATED and torch.cuda.device_count() < 2:
        pytest.skip("NCCL needs two GPUs")
    here = Path(__file__).resolve().parent
    script = folder / "train.py"
    script.write_text(textwrap.dedent(program.format(paths=[str(here)], folder=str(folder), **values)))
    extra = {"ZEROPAGE_SIMULATED_DELAYS": "7,500", accelerator.VARIABLE: "1"} | (
        {"ZEROPAGE_SIMULATED_GLOO": "1"} if gloo else {}
    )
    env = environment(**extra)
    if not accelerator.SIMULATED:
        env["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0,1")
    done = subprocess.run([COMMAND, "--num_gpus=2", script], env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    for rank in range(2):
        assert f"devices {accelerator.device(rank)}" in done.stdout


@pytest.mark.parametrize("gloo", [False, True])
def test_two_ranks_of_the_launcher(gloo: bool, tmp_path: Path):
    """Catches ranks that share a device by mistake, collectives that read or write before a stream has finished, and
    sums that the next reduction overwrites while they are copied to the host."""
    run_on_two_devices(SCRIPT, tmp_path, gloo, cases=CASES_OF_RANKS)
    finals = {
        (rank, case): torch.load(tmp_path / f"{rank}-{case}.pt") for rank in range(2) for case in range(CASES_OF_RANKS)
    }
    for key, found in finals.items():
        assert torch.equal(found, finals[0, 0]), key
    plain = small_net()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-2, weight_decay=0.01)
    for step in range(3):
        optimizer.zero_grad()
        plain(*token_batch(step)).backward()
        optimizer.step()
    assert (finals[0, 0] - flat_parameters(plain)).abs().max() < 5e-3
