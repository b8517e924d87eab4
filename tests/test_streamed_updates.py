"""Optimizer state that is kept on the host and updated on the device, against the same state resident on the device:
the same bits."""

from pathlib import Path
from typing import Any

import accelerator
import pytest
import simulated_device
import torch
from test_gpu_training import delays
from torch import nn
from training import config_of, flat_parameters, small_net, token_batch

import zeropage
from zeropage import errors, utils

pytestmark = pytest.mark.gpu

# Sections of the configuration: fp32 parameters, fp32 masters of bf16 ones, none, and moments in fewer bytes.
TYPES: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"bf16": {"enabled": True}},
    "bf16, no masters": {"bf16": {"enabled": True, "bf16_master_weights_and_grads": True}},
    "bf16, moments in bf16": {"bf16": {"enabled": True}, "zeropage": {"optimizer_state_dtype": "bf16"}},
    "bf16, moments in int8": {"bf16": {"enabled": True}, "zeropage": {"optimizer_state_dtype": "int8"}},
    "fp16": {"fp16": {"enabled": True, "loss_scale": 8}},
}


def make_engine(
    stage: int, streamed: bool, types: str = "bf16", zero: dict[str, Any] | None = None, **options: Any
) -> Any:
    """An engine whose optimizer state is on the host and updated on the device, or resident on the device."""
    sections = {**TYPES[types], **options}
    sections["zeropage"] = {"page_numel": 4096, **sections.get("zeropage", {})}
    sections["zero_optimization"] = dict(zero or {})
    if streamed:
        sections["zero_optimization"] |= {
            "offload_optimizer": {"device": "cpu", **sections["zero_optimization"].get("offload_optimizer", {})}
        }
        sections["zeropage"] |= {"offloaded_update": "device"}
    try:
        return zeropage.initialize(model=small_net(), config=config_of(stage, **sections))[0]
    except errors.ConfigError as error:
        assert "which this build does not have for this device" in str(error)
        pytest.skip("the build has no CUDA kernels")


def train(engine: Any, steps: range = range(4)) -> torch.Tensor:
    parts = engine.gradient_accumulation_steps()
    for step in steps:
        for part in range(parts):
            engine.backward(engine(*(x.chunk(parts)[part].to(engine.device) for x in token_batch(step))))
            engine.step()
    return flat_parameters(engine.module).cpu()


def states_of(engine: Any) -> list[torch.Tensor]:
    """Parameters, their fp32 values, and moments."""
    parameters = list(engine.module.parameters())
    values = [flat_parameters(engine.module), *(utils.safe_get_full_fp32_param(p) for p in parameters)]
    values += [utils.safe_get_full_optimizer_state(p, key) for p in parameters for key in ("exp_avg", "exp_avg_sq")]
    return [value.cpu() for value in values]


def assert_same(found: Any, expected: Any) -> None:
    for one, other in zip(states_of(found), states_of(expected), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("types", TYPES)
@pytest.mark.parametrize("stage", range(4))
def test_bits_are_those_of_resident_state(stage: int, types: str):
    """Catches a page that is updated before its state is there or copied back before it is updated, a buffer that is
    filled too early, and arrays that have another place in the buffer than on the host."""
    resident = make_engine(stage, False, types)
    train(resident)
    with delays(seed=stage):
        streamed = make_engine(stage, True, types)
        train(streamed)
        assert_same(streamed, resident)


def test_passes_over_some_of_the_pages():
    """Catches a page that is read before the last pass has written it, in another buffer."""

    def trained(streamed: bool) -> torch.Tensor:
        torch.manual_seed(0)
        layers = nn.ModuleList(nn.Linear(64, 64, bias=False) for _ in range(4))
        sections: dict[str, Any] = {"zeropage": {"page_numel": 1}, **TYPES["bf16"]}
        if streamed:
            sections["zero_optimization"] = {"offload_optimizer": {"device": "cpu"}}
            sections["zeropage"]["offloaded_update"] = "device"
        engine, *_ = zeropage.initialize(model=layers, config=config_of(1, clipping=0.0, **sections))
        for step in range(8):
            x = torch.randn(4, 64, generator=torch.Generator().manual_seed(step)).to(engine.device, torch.bfloat16)
            for layer in engine.module if step % 2 == 0 else [engine.module[step // 2]]:
                x = layer(x)
            engine.backward(x.float().square().mean())
            engine.step()
        return flat_parameters(engine.module).cpu()

    expected = trained(False)
    for seed in range(3):
        with delays(seed):
            assert torch.equal(trained(True), expected), f"seed {seed}"


@pytest.mark.parametrize("case", ["accumulation", "half", "pageable", "parameters"])
def test_bits_of_other_settings(case: str):
    """Catches pages that stay on the device and are used as other pages, gradients that are added up in another place,
    and parameters that are copied from and to the host."""
    options: dict[str, Any] = {"accumulation": 2} if case == "accumulation" else {}
    zero: dict[str, Any] = {
        "offload_optimizer": {"ratio": 0.5} if case == "half" else {"pin_memory": case != "pageable"}
    }
    if case == "parameters":
        zero["offload_param"] = {"device": "cpu"}
    resident = make_engine(3, False, **options)
    train(resident)
    with delays(seed=5):
        streamed = make_engine(3, True, zero=zero, **options)
        train(streamed)
        assert_same(streamed, resident)


def test_lamb_takes_two_passes():
    """Catches a second pass that reads state before the first one has written it."""
    lamb = {"type": "Lamb", "params": {"lr": 1e-2}}
    resident = make_engine(1, False, optimizer=lamb)
    with delays(seed=6):
        streamed = make_engine(1, True, optimizer=lamb)
        assert torch.equal(train(streamed), train(resident))


def test_a_step_that_overflows_changes_nothing():
    """Catches state that is updated before the check of all gradients."""
    engines = [make_engine(2, streamed, "fp16") for streamed in (False, True)]
    for engine in engines:
        train(engine, range(2))
        tokens, targets = (x.to(engine.device) for x in token_batch(2))
        engine.backward(engine(tokens, targets) * float("inf"))
        engine.step()
        assert engine.skipped_steps == 1
        train(engine, range(2, 4))
    assert_same(engines[1], engines[0])


@pytest.mark.parametrize("first", [True, False])
def test_a_checkpoint_goes_from_one_to_the_other(first: bool, tmp_path: Path):
    """Catches state that is saved before it is back on the host, or loaded into another place."""
    with delays(seed=7):
        saved = make_engine(2, first, "bf16, moments in int8")
        train(saved, range(3))
        saved.save_checkpoint(tmp_path)
        loaded = make_engine(2, not first, "bf16, moments in int8")
        loaded.load_checkpoint(tmp_path)
        assert torch.equal(train(loaded, range(3, 5)), train(saved, range(3, 5)))


def test_values_are_read_and_written_between_steps():
    """Catches a host that reads or writes state while it is being copied."""
    with delays(seed=8):
        engines = [make_engine(1, streamed) for streamed in (False, True)]
        for engine in engines:
            for step in range(3):
                train(engine, range(step, step + 1))
                for p in engine.module.parameters():
                    moment = utils.safe_get_full_optimizer_state(p, "exp_avg")
                    assert moment is not None
                    utils.safe_set_full_optimizer_state(p, moment * 0.5, "exp_avg")
                with torch.no_grad():
                    engine.module.tiny.clamp_(max=0.999)
        assert_same(engines[1], engines[0])


def test_states_move_and_end_at_any_time():
    """Catches buffers that are freed while copies use them, and state that is not brought back."""
    with delays(seed=9):
        streamed, resident = make_engine(2, True, zero={"offload_optimizer": {"ratio": 0.5}}), make_engine(2, False)
        for engine in (streamed, resident):
            train(engine, range(2))
            engine.offload_states()
            engine.reload_states()
            train(engine, range(2, 4))
        assert_same(streamed, resident)
        train(streamed, range(4, 5))
        streamed.destroy()


def test_parameters_that_are_trained_later():
    """Catches pages that get optimizer state when the buffers are there already, and larger ones than before."""
    engines = []
    for streamed in (False, True):
        sections: dict[str, Any] = {
            "zeropage": {"page_numel": 1, **({"offloaded_update": "device"} if streamed else {})}
        }
        if streamed:
            sections["zero_optimization"] = {"offload_optimizer": {"device": "cpu"}}
        model = small_net().to(accelerator.device())
        for layer in model.expand:
            layer.weight.requires_grad_(False)
        model.embedding.weight.requires_grad_(False)
        groups = [{"params": list(model.parameters())}]
        engine, *_ = zeropage.initialize(model=model, model_parameters=groups, config=config_of(1, **sections))
        train(engine, range(2))
        for p in model.parameters():
            p.requires_grad_(True)
        train(engine, range(2, 4))
        engines.append(engine)
    assert_same(engines[1], engines[0])


@pytest.mark.simulated
@pytest.mark.parametrize("stage", range(4))
def test_a_step_waits_once(stage: int):
    """Catches a host that waits for a page, or for the copies of a pass."""
    engine = make_engine(stage, True)
    for step in range(3):
        batch = [x.to(engine.device) for x in token_batch(step)]
        torch.accelerator.synchronize()
        with simulated_device.count() as counted:
            engine.backward(engine(*batch))
            engine.step()
        assert counted["waits"] + counted["fetches"] + counted["uploads"] <= 1, counted


def test_memory_is_two_buffers_on_the_device():
    """Catches state that stays on the device, and an undo log that nothing uses."""
    pageable = {"offload_optimizer": {"pin_memory": False}}  # what torch locks takes the next power of two
    streamed, resident = make_engine(1, True, zero=pageable).memory_report(), make_engine(1, False).memory_report()
    device, host = streamed.ranks[0], streamed.host[0]
    assert host["optimizer"] == resident.ranks[0]["optimizer"] and device["optimizer"] == 0 and host["buffers"] == 0
    # Master and moments of the largest page, a parameter of 8192 elements.
    assert device["buffers"] - resident.ranks[0]["buffers"] == 2 * 12 * 8192


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        (
            {"zeropage": {"offloaded_update": "device"}, "optimizer": {"type": "RAdam", "params": {"lr": 1e-3}}},
            "an optimizer that PyTorch runs",
        ),
        ({"zeropage": {"offloaded_update": "device", "speculation_bytes": 1}}, "for updates on the host"),
    ],
)
def test_impossible_settings_are_refused(sections: dict[str, Any], says: str):
    """Catches a key that is ignored."""
    config = config_of(1, zero_optimization={"offload_optimizer": {"device": "cpu"}}, **sections)
    with pytest.raises(errors.ConfigError, match=says):
        zeropage.initialize(model=small_net(), config=config)


@pytest.mark.parametrize(
    ("own", "pinned", "streamed"), [({}, True, True), ({"speculation_bytes": 1 << 20}, True, False), ({}, False, False)]
)
def test_what_is_chosen(own: dict[str, Any], pinned: bool, streamed: bool):
    """Catches a default that is not the documented one."""
    if not accelerator.SIMULATED:
        pytest.skip("on a GPU it depends on whether the kernels were built")
    zero = {"offload_optimizer": {"device": "cpu", "pin_memory": pinned}}
    engine, *_ = zeropage.initialize(
        model=small_net(), config=config_of(1, zero_optimization=zero, zeropage={"page_numel": 4096, **own})
    )
    assert (engine.memory_report().host[0]["buffers"] == 0) is streamed  # where the host updates gradients wait there
