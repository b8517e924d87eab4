"""An operation on the device that never ends: every wait of the host ends with an error that names the rank and what it
waited for. Such operations are collectives that wait for a rank that has failed."""

import contextlib
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import accelerator
import pytest
import simulated_device
import torch
from processes import run_processes
from torch import nn
from training import config_of

import zeropage
from zeropage import distributed
from zeropage.errors import ZeropageError
from zeropage.runtime import gradient_norms

pytestmark = pytest.mark.simulated

TIMEOUT_MS = 2500
OF_TWO_RANKS_MS = 6000  # which may start seconds apart
HOST = {"offload_optimizer": {"device": "cpu"}}
PAGEABLE = {"offload_optimizer": {"device": "cpu", "pin_memory": False}}
ON_HOST = {"offloaded_update": "host", "speculation_bytes": 0}
ON_DEVICE = {"offloaded_update": "device"}
NO_NORM = {"compute_grad_norm": False}
STATE_ON_DRIVE = {"device": "nvme", "nvme_path": "FOLDER"}
DRIVE = {**STATE_ON_DRIVE, "max_in_cpu": 0}
MASTERS_ON_HOST: dict[str, Any] = {"zero_optimization": HOST, "bf16": {"enabled": True}, "zeropage": ON_HOST}


def make_model(device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 8)).to(device)


def initialize(stage: int, model: nn.Module, device: torch.device, **sections: Any) -> Any:
    own = {"timeout_ms": TIMEOUT_MS, "page_numel": 1000, **sections.pop("zeropage", {})}
    engine, *_ = zeropage.initialize(model=model, config=config_of(stage, zeropage=own, **sections), device=device)
    return engine


def loss_of(engine: Any) -> torch.Tensor:
    x = torch.ones(8, 32, device=engine.device, dtype=next(engine.module.parameters()).dtype)
    return engine(x).float().square().mean()


def save(engine: Any, folder: Path) -> None:
    engine.save_checkpoint(folder / "saved")


def write_and_load(engine: Any, folder: Path) -> None:
    with torch.no_grad():
        for parameter in engine.module.parameters():
            parameter.mul_(2)
    engine.load_checkpoint(folder / "saved")


def backward_and_step(engine: Any, folder: Path) -> None:
    engine.backward(engine.loss)
    engine.step()


def step(engine: Any, folder: Path) -> None:
    engine.step()


def read_norm(engine: Any, folder: Path) -> None:
    gradient_norms.get_grad_norm(engine.module.parameters())


def look_for_overflow(engine: Any, folder: Path) -> None:
    gradient_norms.CheckOverflow([list(engine.module.parameters())]).check()


def read_state(engine: Any, folder: Path) -> None:
    zeropage.utils.safe_get_full_optimizer_state(next(engine.module.parameters()), "exp_avg")


@dataclass
class Case:
    """What a program does while an operation does not end, and the words of the error."""

    use: Callable[[Any, Path], Any]
    words: str
    stage: int
    sections: dict[str, Any] = field(default_factory=dict)
    backward: bool = False  # whether a backward runs before `use`
    prepare: Callable[[Any, Path], Any] | None = None
    elsewhere: bool = False  # whether the operation is on another stream than the program's


def gradients(stage: int, words: str, zero: dict[str, Any] = HOST) -> Case:
    zero = {"compute_grad_norm": False, **zero}
    return Case(backward_and_step, words, stage, {"zero_optimization": zero, "zeropage": ON_HOST, "clipping": 0.0})


TO_HOST, TO_UPDATE = "the copy of gradients to the host", "the copy of gradients for the update"
CASES = {
    **{f"norm, stage {stage}": Case(step, "the squares of the gradients", stage, {}, True) for stage in range(4)},
    "gradients, stage 0": gradients(0, TO_UPDATE),
    "gradients, stage 1": gradients(1, TO_UPDATE),
    "gradients, stage 2": gradients(2, TO_HOST),
    "gradients, stage 3": gradients(3, TO_HOST),
    "pageable gradients, stage 1": gradients(1, TO_UPDATE, PAGEABLE),
    "pageable gradients, stage 2": gradients(2, TO_HOST, PAGEABLE),
    "written parameters": Case(
        write_and_load,
        "the copy of written parameters to the host",
        3,
        {"zero_optimization": {"offload_param": {"device": "cpu"}}},
        prepare=save,
    ),
    "written parameters with masters": Case(
        write_and_load,
        "the copy of written parameters to their masters",
        1,
        MASTERS_ON_HOST,
        prepare=save,
    ),
    "a checkpoint": Case(
        lambda engine, folder: engine.save_checkpoint(folder / "new"), "the copy of state for a checkpoint", 2
    ),
    "loading": Case(
        lambda engine, folder: engine.load_checkpoint(folder / "saved"),
        "the copy of state from a checkpoint",
        2,
        prepare=save,
    ),
    "a file": Case(
        lambda engine, folder: engine.save_16bit_model(folder),
        "the copy of a tensor for a file",
        3,
        {"bf16": {"enabled": True}},
    ),
    "offload_states": Case(lambda engine, folder: engine.offload_states(), "the device, before its memory is freed", 2),
    "reload_states": Case(
        lambda engine, folder: engine.reload_states(),
        "the copy of states from the host",
        2,
        prepare=lambda engine, folder: engine.offload_states(),
    ),
    "a drive": Case(
        lambda engine, folder: next(engine.module.parameters()).detach().sum(),
        "the copy of parameters from the drive",
        3,
        {"zero_optimization": {**HOST, "offload_param": DRIVE}},
        prepare=lambda engine, folder: engine.empty_partition_cache(),
    ),
    "initial values": Case(
        lambda engine, folder: initialize(1, engine.spare[0], engine.device, **MASTERS_ON_HOST),
        "initial values",
        0,
    ),
    "initial values of masters on the host": Case(
        lambda engine, folder: initialize(
            1, engine.spare[0], engine.device, zero_optimization=HOST, bf16={"enabled": True}, zeropage=ON_DEVICE
        ),
        "initial values",
        0,
    ),
    "gradients, to a drive": Case(
        backward_and_step,
        "the copy of gradients to the drive",
        3,
        {"zero_optimization": {"offload_optimizer": STATE_ON_DRIVE, "offload_param": DRIVE}},
    ),
    "pageable state": Case(
        backward_and_step,
        "the copy of optimizer state to the (device|host)",
        1,
        {"zero_optimization": {**PAGEABLE, **NO_NORM}, "zeropage": ON_DEVICE, "clipping": 0.0},
    ),
    "pageable parameters": Case(
        backward_and_step,
        "the copy of gradients for the update",
        3,
        {"zero_optimization": {"offload_param": PAGEABLE["offload_optimizer"], **NO_NORM}, "clipping": 0.0},
    ),
    "norms of Lamb": Case(
        backward_and_step,
        "the norms of Lamb",
        1,
        {"optimizer": {"type": "Lamb", "params": {"lr": 1e-3}}, "zero_optimization": NO_NORM, "clipping": 0.0},
    ),
    "a gradient norm of the program's": Case(read_norm, "a value that was computed from gradients", 0, {}, True),
    "an overflow of the program's": Case(look_for_overflow, "a value that was computed from gradients", 0, {}, True),
    "a state dict": Case(
        lambda engine, folder: engine.module_state_dict(),
        "the copy of a tensor to the host",
        3,
        {"bf16": {"enabled": True}},
    ),
    "a full value": Case(read_state, "values of a parameter", 2, {"zero_optimization": HOST}),
    "the loss": Case(lambda engine, folder: engine.mean_loss(), "the loss", 0, {}, True),
    "the end of a phase": Case(
        lambda engine, folder: engine(torch.ones(8, 32, device=engine.device)),
        "the device, at the end of forward",
        0,
        {"wall_clock_breakdown": True},
    ),
    "another engine": Case(
        lambda engine, folder: initialize(0, engine.spare[0], engine.device),
        "the device, before memory is returned to the system",
        0,
        elsewhere=True,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_wait_for_an_operation_that_does_not_end(name: str, tmp_path: Path):
    """Catches a wait in the device's library, which would never end, and one whose error does not say what for."""
    case = CASES[name]
    device = accelerator.device()
    sections = json.loads(json.dumps(case.sections).replace("FOLDER", str(tmp_path)))
    engine = initialize(case.stage, make_model(device), device, **sections)
    engine.backward(loss_of(engine))
    engine.step()
    engine.loss, engine.spare = loss_of(engine), [make_model(device)]
    if case.backward:
        engine.backward(engine.loss)
    if case.prepare:
        case.prepare(engine, tmp_path)
    torch.accelerator.synchronize()
    with contextlib.ExitStack() as until_the_end:
        with torch.Stream(device) if case.elsewhere else contextlib.nullcontext():
            until_the_end.enter_context(simulated_device.held())
        began = time.monotonic()
        with pytest.raises(ZeropageError) as raised:
            case.use(engine, tmp_path)
        seconds = time.monotonic() - began
    torch.accelerator.synchronize()
    assert re.search(rf"rank 0 waited {TIMEOUT_MS} ms for ({case.words}).*did not end", str(raised.value)), raised.value
    assert seconds < 2 * TIMEOUT_MS / 1000 + 3


@pytest.mark.parametrize("way", ["to", "from"])
def test_a_drive_of_an_init_scope(way: str, tmp_path: Path):
    """Catches the same while a model is built on a drive, where there is no engine yet."""
    device = accelerator.device()
    drive = json.loads(json.dumps(DRIVE).replace("FOLDER", str(tmp_path)))
    zero = {**HOST, "offload_param": drive, "stage3_max_live_parameters": 3300}
    config = config_of(3, zero_optimization=zero, zeropage={"timeout_ms": TIMEOUT_MS})
    with pytest.raises(ZeropageError) as raised, zeropage.zero.Init(config_dict_or_path=config):
        # Two of these may be live.
        first = nn.Linear(40, 40, device=device)
        others = [nn.Linear(40, 40, device=device) for _ in range(2 if way == "from" else 0)]
        torch.accelerator.synchronize()
        with simulated_device.held():
            if way == "to":
                nn.Linear(80, 80, device=device)
            first.weight.detach().sum()
            assert not others, "this should have failed, because these have taken the place of the first one"
    torch.accelerator.synchronize()
    words = f"rank 0 waited {TIMEOUT_MS} ms for the copy of a tensor of the Init scope {way} the drive"
    assert words in str(raised.value), raised.value


def test_an_engine_ends_beside_an_operation_that_does_not(capfd: pytest.CaptureFixture):
    """Catches an end of an engine that waits for ever for a device that does not answer."""
    engine = initialize(2, make_model(accelerator.device()), accelerator.device())
    engine.backward(loss_of(engine))
    engine.step()
    torch.accelerator.synchronize()
    with simulated_device.held():
        began = time.monotonic()
        engine.destroy()
        seconds = time.monotonic() - began
    assert seconds < TIMEOUT_MS / 1000 + 3
    said = capfd.readouterr().err
    assert f"an engine ends while its device is still at work: rank 0 waited {TIMEOUT_MS} ms for the device" in said


def step_beside(stage: int, **sections: Any) -> str:
    """The error of a step during which rank 0's device has an operation that does not end."""
    world = distributed.current_world()
    device = accelerator.device(world.rank)
    sections["zeropage"] = {"timeout_ms": OF_TWO_RANKS_MS, **sections.get("zeropage", {})}
    engine = initialize(stage, make_model(device), device, **sections)
    with simulated_device.visible(True):
        engine.backward(loss_of(engine))
        engine.step()
        engine.backward(loss_of(engine))
        torch.accelerator.synchronize()
        try:
            if world.rank == 1:
                time.sleep(1.5)  # so that rank 0's time is over first
                engine.step()
            else:
                with simulated_device.held():
                    engine.step()
        except ZeropageError as error:
            return str(error)
        finally:
            torch.accelerator.synchronize()
    return "no error"


@pytest.mark.parametrize(
    ("stage", "sections", "words"),
    [
        (1, {}, ""),
        (2, {"zero_optimization": HOST}, ""),
        (3, {}, ""),
        (
            0,
            {"zero_optimization": NO_NORM, "zeropage": {"replica_check_steps": 2}, "clipping": 0.0},
            "parameters that ranks compare",
        ),
    ],
)
def test_other_ranks_learn_of_it(stage: int, sections: dict[str, Any], words: str, tmp_path: Path):
    """Catches ranks that wait for their own timeout, with an error that names the wrong rank."""
    arguments = json.dumps({"stage": stage, **sections})
    for error in run_processes(2, "test_device_waits", "step_beside", arguments, tmp_path):
        assert f"rank 0 waited {OF_TWO_RANKS_MS} ms for {words}" in error, error
