"""The stages compared with each other and with plain PyTorch, with the model on an accelerator: one rank, and two
processes, whose collectives are delayed at random. Where there is no GPU the accelerator is the simulated device
(simulated_device/README.md); `make gpu-test` runs these where there is one. The same two-process runs on the CPU check
the test itself, and gloo, everywhere."""

import copy
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import accelerator
import pytest
import simulated_device
import torch
from processes import run_processes
from test_optimizers import OPTIMIZERS, Vector, gradient_of, lamb_by_hand, section
from training import config_of, flat_parameters, small_net, token_batch, train_engine

import zeropage
from zeropage import distributed, errors

STEPS = 6
# The largest difference allowed to torch.optim.AdamW after STEPS updates of lr 1e-2: reductions on a GPU add in another
# order.
BOUND = 5e-4
DEVICES = ["cpu", pytest.param("accelerator", marks=pytest.mark.gpu)]

SMALL_PAGES: dict[str, Any] = {
    "zeropage": {"page_numel": 4096},
    "zero_optimization": {"stage3_max_live_parameters": 9000},
}


def device_of(name: str) -> torch.device:
    """A device of DEVICES."""
    return accelerator.device() if name == "accelerator" else torch.device(name)


def train_plain_on(device: torch.device) -> torch.Tensor:
    """torch.optim.AdamW on whole batches; the final parameters."""
    model = accelerator.OnDevice(copy.deepcopy(small_net()), device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.01)
    for step in range(STEPS):
        optimizer.zero_grad()
        model(*token_batch(step)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
    return flat_parameters(model).cpu()


def train_stages(device: str, max_delay_us: int, precision: str = "fp32") -> list[torch.Tensor]:
    """One rank's part: stages 0 to 3, one after the other; the final parameters of each."""
    torch_device = device_of(device)
    world = distributed.world_from_environment()
    backend = "gloo" if torch_device.type in ("cpu", "cuda") else None
    distributed.init_process_group(torch_device, world, backend=backend, timeout=timedelta(seconds=60))
    finals = []
    for stage in range(4):
        config = config_of(stage, **copy.deepcopy(SMALL_PAGES))
        if precision != "fp32":
            config[precision] = {"enabled": True}
        groups = [
            distributed.new_process_groups(torch_device, True, timedelta(seconds=60), max_delay_us) for _ in range(2)
        ]
        with distributed.thread_rank(*groups):
            engine, *_ = zeropage.initialize(model=accelerator.OnDevice(small_net(), torch_device), config=config)
            outcome = train_engine(engine, world.size, world.rank, STEPS)
            finals.append(outcome.parameters.cpu())
            if stage == 3 and world.size > 1:
                assert outcome.pager.evictions > 0
            engine.destroy()
    return finals


def check_two_processes(device: str, precision: str, folder: Path) -> None:
    arguments = json.dumps({"device": device, "max_delay_us": 300, "precision": precision})
    ranks = run_processes(2, "test_gpu", "train_stages", arguments, folder, timeout_s=240)
    for finals in ranks:
        for stage in range(4):
            # In 16 bit stage 0 rounds the summed gradient to 16 bit, as data parallel training does.
            first = 0 if precision == "fp32" else 1
            assert stage < first or torch.equal(finals[stage], ranks[0][first]), f"stage {stage}"
    if precision == "fp32":
        assert (ranks[0][0] - train_plain_on(device_of(device))).abs().max() < BOUND


@pytest.mark.gpu
@pytest.mark.parametrize("kernels", [True, pytest.param(False, marks=pytest.mark.simulated)])
@pytest.mark.parametrize("stage", range(4))
def test_one_rank_on_a_gpu(stage: int, kernels: bool):
    """Catches host-only code in pages, gradients or the update, by kernels of our own and by torch's operators; and
    process groups, which would outlive each engine."""
    device = accelerator.device()
    if accelerator.SIMULATED:
        simulated_device.set_kernels(kernels)
    engine, *_ = zeropage.initialize(model=accelerator.OnDevice(small_net(), device), config=config_of(stage))
    final = train_engine(engine, 1, 0, STEPS).parameters.cpu()
    assert not torch.distributed.is_initialized()
    assert (final - train_plain_on(device)).abs().max() < BOUND


@pytest.mark.parametrize("pinned", [True, False])
@pytest.mark.parametrize("ratio", [1.0, 0.5])
@pytest.mark.gpu
@pytest.mark.parametrize("stage", range(4))
def test_offload_on_a_gpu(stage: int, ratio: float, pinned: bool):
    """Catches gradients and parameters that are used before they have arrived in the other memory."""
    device = accelerator.device()
    sections = copy.deepcopy(SMALL_PAGES)
    sections["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "ratio": ratio, "pin_memory": pinned}
    if stage == 3:
        sections["zero_optimization"]["offload_param"] = {"device": "cpu", "pin_memory": pinned}
    engine, *_ = zeropage.initialize(
        model=accelerator.OnDevice(small_net(), device), config=config_of(stage, **sections)
    )
    final = train_engine(engine, 1, 0, STEPS).parameters.cpu()
    assert (final - train_plain_on(device)).abs().max() < BOUND
    engine.offload_states()
    engine.reload_states()
    assert torch.equal(flat_parameters(engine.module).cpu(), final)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.gpu
@pytest.mark.parametrize("stage", (1, 2, 3))
def test_updates_during_the_backward_change_no_bit(stage: int, precision: str):
    """Catches an update by a gradient, or of a parameter, that has not arrived yet, and a log that is written while
    values are copied from it."""

    def train(log_bytes: int) -> tuple[torch.Tensor, int]:
        config = config_of(stage, clipping=0.0, **copy.deepcopy(SMALL_PAGES))
        config["zero_optimization"]["offload_optimizer"] = {"device": "cpu"}
        config["zeropage"]["speculation_bytes"] = log_bytes
        if precision != "fp32":
            config[precision] = {"enabled": True}
        engine, *_ = zeropage.initialize(
            model=accelerator.OnDevice(copy.deepcopy(small_net()), accelerator.device()), config=config
        )
        ahead = 0
        for step in range(STEPS):
            engine.backward(engine(*token_batch(step)))
            engine.step()
            ahead += engine._core.last_step.pages_ahead
        return flat_parameters(engine.module).cpu(), ahead

    waited, none = train(0)
    found, ahead = train(1 << 20)
    assert none == 0 and (ahead > 0 or precision == "fp32")  # whole fp32 pages on a device wait
    assert torch.equal(found, waited)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("device", DEVICES)
def test_two_processes_share_a_device(device: str, precision: str, tmp_path: Path):
    """Catches buffers that are used again before a delayed collective has read or written them."""
    check_two_processes(device, precision, tmp_path)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ("fp32", "bf16", "fp16"))
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_updates_on_the_gpu_follow_torch(name, precision):
    """Catches a kernel that leaves elements out, mixes up arrays or rounds in another way than the host: 20 steps of
    each optimizer compared with torch's on the GPU. 16-bit parameters are compared with those of the engine on the
    host."""
    kind, params, make = OPTIMIZERS[name]

    def by_engine(device: torch.device) -> torch.Tensor:
        sections: dict[str, Any] = (
            {}
            if precision == "fp32"
            else {precision: {"enabled": True} | ({"loss_scale": 1} if precision == "fp16" else {})}
        )
        config = {**config_of(1, batch=1, clipping=0.0, **sections), "optimizer": {"type": kind, "params": params}}
        engine, *_ = zeropage.initialize(model=Vector(), config=config, device=device)
        for step in range(20):
            engine.backward(engine(gradient_of(step).to(device, engine.module.p.dtype)))
            engine.step()
        return engine.module.p.detach().float().cpu()

    def by_torch() -> torch.Tensor:
        model = Vector().to(accelerator.device())
        optimizer = make(model.parameters(), **{key: value for key, value in params.items() if key != "adam_w_mode"})
        for step in range(20):
            model.p.grad = gradient_of(step).to(accelerator.device())
            optimizer.step()
        return model.p.detach().cpu()

    expected = by_torch() if precision == "fp32" else by_engine(torch.device("cpu"))
    # A multiply-add that is fused on one side: some ulp of values around 1, or one step of 16 bits where a rounding
    # changes.
    bound = {"fp32": 4e-6, "bf16": 2**-6, "fp16": 2**-9}[precision]
    assert (by_engine(accelerator.device()) - expected).abs().max().item() <= bound


def initialize_where_rounded(config: dict) -> Any:
    """An engine whose update rounds at random on the GPU, which takes kernels of our own; skips where the build has
    none."""
    try:
        return zeropage.initialize(model=Vector(), config=config, device=accelerator.device())[0]
    except errors.ConfigError as error:
        assert "CUDA kernels" in str(error)
        pytest.skip("the build has no CUDA kernels")


# Type of the moments, masters, offload.
ROUNDED = (
    ("fp32", False, False),
    ("bf16", True, False),
    ("bf16", False, False),
    ("int8", True, False),
    ("int8", False, False),
)
ROUNDED_OFFLOADED = (("fp32", False, True), ("int8", False, True))


def is_slow(name: str, states: str, offload: bool, precision: str) -> bool:
    """Where kernels are emulated one optimizer shows how int8's are launched, and optim_tests what all of them
    compute."""
    return accelerator.SIMULATED and states == "int8" and not offload and (name, precision) != ("AdamW", "bf16")


CASES = [
    (name, *kind, precision)
    for name in OPTIMIZERS
    for kind in ROUNDED + ROUNDED_OFFLOADED
    for precision in ("bf16", "fp16")
]


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("name", "states", "masters", "offload", "precision"), [c for c in CASES if not is_slow(c[0], c[1], c[3], c[4])]
)
def test_rounding_at_random_gives_the_hosts_bits(name, states, masters, offload, precision, tmp_path):
    """Catches a kernel that rounds in another way than the host, moments that a checkpoint reads from a GPU's memory or
    writes to it at the wrong place, and 16-bit masters that are not sent to an update on the host: ten steps, with a
    checkpoint half-way."""
    kind, params, _ = OPTIMIZERS[name]
    section = {"enabled": True, f"{precision}_master_weights_and_grads": not masters}
    sections: dict[str, Any] = {
        precision: section | ({"loss_scale": 1} if precision == "fp16" else {}),
        "zeropage": {"optimizer_state_dtype": states},
        "zero_optimization": {"offload_optimizer": {"device": "cpu"}} if offload else {},
    }
    config = {**config_of(1, batch=1, clipping=0.0, **sections), "optimizer": {"type": kind, "params": params}}

    def train(engine: Any, steps: range) -> torch.Tensor:
        for step in steps:
            engine.backward(engine(gradient_of(step).to(engine.device, engine.module.p.dtype)))
            engine.step()
        return engine.module.p.detach().cpu()

    expected = train(zeropage.initialize(model=Vector(), config=config, device="cpu")[0], range(10))
    first = initialize_where_rounded(config)
    train(first, range(5))
    first.save_checkpoint(tmp_path)
    second = initialize_where_rounded(config)
    second.load_checkpoint(tmp_path)
    assert torch.equal(train(second, range(5, 10)), expected)


@pytest.mark.parametrize("precision", ("fp32", "bf16"))
@pytest.mark.parametrize("device", DEVICES)
def test_lamb_follows_its_formula_on_a_device(device, precision):
    """Catches a formula in torch's operators that is not the kernels', in double: 20 steps."""
    sections: dict[str, Any] = {} if precision == "fp32" else {precision: {"enabled": True}}
    config = {**config_of(1, batch=1, clipping=0.0, **sections), "optimizer": section("Lamb")}
    engine, *_ = zeropage.initialize(model=Vector(), config=config, device=device_of(device))
    p = Vector().p.detach().double()
    m, v = torch.zeros_like(p), torch.zeros_like(p)
    for step in range(20):
        gradient = gradient_of(step).to(engine.module.p.dtype)
        engine.backward(engine(gradient.to(engine.device)))
        engine.step()
        lamb_by_hand(p, m, v, gradient.double(), step + 1)
    # Some ulp of the fp32 master. A 16-bit parameter differs from its master by at most half a step.
    torch.testing.assert_close(
        engine.module.p.detach().cpu().double(), p, atol=3e-6, rtol=0 if precision == "fp32" else 2**-8
    )
