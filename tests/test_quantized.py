"""ZeRO++'s quantized gathers (8 bits) and reductions (4 bits): what they change, what they must not, and their
bytes."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from network_namespace import loopback_bytes, run_in_namespace
from torch import nn
from training import (
    config_of,
    flat_parameters,
    interrupted_run,
    part_of_batch,
    small_net,
    token_batch,
    train_ranks,
)

import zeropage
from zeropage.testing import run_ranks

WEIGHTS = {"zero_quantized_weights": True}
FROZEN = {"zero_quantized_nontrainable_weights": True}
GRADIENTS = {"zero_quantized_gradients": True}
MODES = {"weights": WEIGHTS, "gradients": GRADIENTS, "both": WEIGHTS | GRADIENTS}
PRECISIONS: dict[str, dict[str, Any]] = {"fp32": {}, "bf16": {"bf16": {"enabled": True}}}
STEPS = 40


def quantized(stage: int = 3, mode: dict[str, bool] | None = None, **sections: Any) -> dict[str, Any]:
    zero = {**(WEIGHTS | GRADIENTS if mode is None else mode), **sections.pop("zero_optimization", {})}
    return config_of(stage, zero_optimization=zero, **sections)


class Classifier(nn.Module):
    """Two hidden layers with biases, on inputs of 32."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(32, 96), nn.GELU(), nn.Linear(96, 96), nn.GELU(), nn.Linear(96, 10))

    def forward(self, x: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(self.layers(x.to(self.layers[0].weight.dtype)).float(), targets)


def losses_of(world: int, config: dict[str, Any]) -> torch.Tensor:
    """Mean loss of each step on batches of 64, whose targets a fixed linear map gives."""
    torch.manual_seed(3)
    model, teacher = Classifier(), torch.randn(32, 10)

    def run(rank: int, communicator: Any) -> list[float]:
        engine, *_ = zeropage.initialize(model=copy.deepcopy(model), config=config)
        losses = []
        for step in range(STEPS):
            x = torch.randn(64, 32, generator=torch.Generator().manual_seed(step))
            loss = engine(*part_of_batch((x, (x @ teacher).argmax(1)), world, rank))
            engine.backward(loss)
            engine.step()
            losses.append(loss.item())
        return losses

    return torch.tensor(run_ranks(world, run)).mean(0)


@pytest.mark.parametrize("world", (2, 4))
@pytest.mark.parametrize("precision", PRECISIONS)
def test_losses_stay_near_the_exact_ones(precision: str, world: int):
    """Catches values that are coded or added wrongly, and keys without effect: no loss of 40 steps, in which it falls
    from 2.3 to below 1, may differ by more than 0.1 from the exact run's."""
    sections = {**PRECISIONS[precision], "batch": 64}
    exact = losses_of(world, config_of(3, **sections))
    assert exact[0] > 2.2 and exact[-1] < 1.0
    for name, mode in MODES.items():
        found = losses_of(world, quantized(mode=mode, **sections))
        assert not torch.equal(found, exact), name
        assert (found - exact).abs().max() < 0.1, name


@pytest.mark.parametrize("world", (2, 4))
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("mode", MODES)
def test_bits_do_not_depend_on_the_transport(mode: str, precision: str, world: int):
    """Catches ranks that end with different parameters, and transports, limits or prefetch on which values depend."""
    model, config = small_net(), quantized(mode=MODES[mode], **PRECISIONS[precision])
    expected = train_ranks(model, world, config, 4)[0]
    small = {"stage3_max_live_parameters": 5000, "stage3_prefetch_bucket_size": 3000}
    limited = quantized(
        mode=MODES[mode], zero_optimization=small, zeropage={"page_numel": 4096}, **PRECISIONS[precision]
    )
    for other, faults in ((config, {"two_sided": True, "max_delay_us": 200}), (limited, {"two_sided": True})):
        found = train_ranks(model, world, other, 4, faults=faults)[0]
        if other is config:
            assert torch.equal(found.parameters, expected.parameters)
            assert found.losses == expected.losses
    one_sided = train_ranks(model, world, limited, 4)[0]
    assert torch.equal(one_sided.parameters, found.parameters)


@pytest.mark.parametrize("accumulation", (1, 2))
def test_quantized_gradients_give_the_same_bits_at_stages_1_to_3(accumulation: int):
    """Catches a stage that codes other parts of a page, or that adds them in another way. With accumulation stage 1
    codes the sum of the micro batches, and stages 2 and 3 code each of them."""
    found = {
        (stage, two_sided): train_ranks(
            small_net(), 2, quantized(stage, GRADIENTS, accumulation=accumulation), 4, faults={"two_sided": two_sided}
        )[0].parameters
        for stage in (1, 2, 3)
        for two_sided in (False, True)
    }
    for (stage, two_sided), parameters in found.items():
        like = found[1, False] if stage == 1 or accumulation == 1 else found[2, False]
        assert torch.equal(parameters, like), (stage, two_sided)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(precision: str, tmp_path: Path):
    """Catches a checkpoint that holds the rounded values that are sent instead of the exact ones."""
    model, config = small_net(), quantized(**PRECISIONS[precision])

    def run(resume: bool) -> list[torch.Tensor]:
        def on_rank(rank: int, communicator: Any) -> torch.Tensor:
            engine, *_ = zeropage.initialize(model=copy.deepcopy(model), config=config)
            return interrupted_run(engine, rank, tmp_path, resume)

        return run_ranks(2, on_rank)

    whole, resumed = run(False), run(True)
    assert torch.equal(whole[0], whole[1])
    assert torch.equal(whole[0], resumed[0])


@pytest.mark.parametrize("two_sided", (False, True))
def test_what_the_engine_returns_is_exact(two_sided: bool, tmp_path: Path):
    """Catches rounded values in gathered scopes, in saved models, in an engine that takes the parameters over, and in
    copies that are made when the engine has ended."""
    model = small_net()
    initial = flat_parameters(model)

    def run(rank: int, communicator: Any) -> None:
        mine = copy.deepcopy(model)
        config = quantized(zero_optimization={"stage3_gather_16bit_weights_on_model_save": True})
        engine, *_ = zeropage.initialize(model=mine, config=config)
        with torch.no_grad():
            rounded = torch.cat([p.detach().flatten().clone() for p in mine.parameters()])
            assert not torch.equal(rounded, initial), "nothing was rounded"
            assert (rounded - initial).abs().max() <= initial.abs().max() / 127
        assert torch.equal(flat_parameters(mine), initial)
        engine.save_16bit_model(str(tmp_path / f"{two_sided}"), "model.safetensors")
        with torch.no_grad():
            mine(*part_of_batch(token_batch(0), 2, rank))  # frames with rounded values
        engine.destroy()
        copied = torch.cat([value.flatten() for value in mine.state_dict().values()])
        assert torch.equal(copied.clone(), initial), "rounded after the engine's end"
        second, *_ = zeropage.initialize(model=mine, config=config)
        assert torch.equal(flat_parameters(mine), initial)
        with torch.no_grad():
            mine(*part_of_batch(token_batch(0), 2, rank))
        second.destroy(consolidate=True)
        assert torch.equal(flat_parameters(mine), initial)

    run_ranks(2, run, two_sided=two_sided)
    from safetensors.torch import load_file

    saved = load_file(tmp_path / f"{two_sided}" / "model.safetensors")
    for name, parameter in model.named_parameters():
        assert torch.equal(saved[name], parameter), name


@pytest.mark.parametrize("two_sided", (False, True))
def test_a_model_that_an_init_scope_takes(two_sided: bool, capfd: pytest.CaptureFixture[str]):
    """Catches a scope that passes rounded values on, and its arguments being ignored silently."""
    config = quantized(zero_optimization={"stage3_max_live_parameters": 3000})
    built = small_net()

    def run(rank: int, communicator: Any) -> None:
        model = copy.deepcopy(built)
        zeropage.zero.Init(module=model, config_dict_or_path=config, zero_quantized_weights=True)
        engine, *_ = zeropage.initialize(model=model, config=config)
        assert torch.equal(flat_parameters(engine.module), flat_parameters(built))

    run_ranks(2, run, two_sided=two_sided)
    assert "zero.Init" not in capfd.readouterr().err
    zeropage.zero.Init(zero_quantized_weights=True, zero_quantized_nontrainable_weights=True)
    messages = capfd.readouterr().err
    assert "zero_quantized_weights=True has no effect here" in messages
    assert "zero_quantized_nontrainable_weights=True has no effect here" in messages


@pytest.mark.parametrize("two_sided", (False, True))
@pytest.mark.parametrize("precision", PRECISIONS)
def test_writes_of_the_program_start_from_exact_values(precision: str, two_sided: bool):
    """Catches weights that are rounded at every write, because the values of a gather are written back."""
    model = small_net()
    halved = {
        name: (p.detach() / 2).to(torch.bfloat16 if precision == "bf16" else p.dtype).float()
        for name, p in model.named_parameters()
    }

    def run(rank: int, communicator: Any) -> None:
        engine, *_ = zeropage.initialize(model=copy.deepcopy(model), config=quantized(**PRECISIONS[precision]))
        with torch.no_grad():
            for parameter in engine.module.parameters():
                parameter.mul_(0.5)
        assert torch.equal(flat_parameters(engine.module), torch.cat([p.flatten() for p in halved.values()]))
        engine.backward(engine(*part_of_batch(token_batch(0), 2, rank)))
        engine.optimizer.param_groups[0]["lr"] = 0.0
        engine.step()
        assert torch.equal(flat_parameters(engine.module), torch.cat([p.flatten() for p in halved.values()]))

    run_ranks(2, run, two_sided=two_sided)


@pytest.mark.parametrize("two_sided", (False, True))
def test_frozen_parameters_alone(two_sided: bool):
    """Catches frozen weights that are not rounded, trained ones that are, and a layer that is still rounded when it is
    trained after all."""
    model = small_net()
    model.embedding.requires_grad_(False)

    def run(rank: int, communicator: Any) -> None:
        mine = copy.deepcopy(model)
        groups = [{"params": list(mine.parameters())}]
        engine, *_ = zeropage.initialize(model=mine, model_parameters=groups, config=quantized(mode=FROZEN))
        with torch.no_grad():
            for name, parameter in mine.named_parameters():
                same = torch.equal(parameter.clone(), model.get_parameter(name))
                assert same == (name != "embedding.weight"), name
        mine.embedding.requires_grad_(True)
        for step in range(2):
            engine.backward(engine(*part_of_batch(token_batch(step), 2, rank)))
            engine.step()
        seen = mine.embedding.weight.detach().clone()
        with zeropage.zero.GatheredParameters([mine.embedding.weight]):
            exact = mine.embedding.weight.detach().clone()
        assert torch.equal(seen, exact)
        assert not torch.equal(exact, model.embedding.weight)

    run_ranks(2, run, two_sided=two_sided)


@pytest.mark.parametrize("two_sided", (False, True))
def test_an_overflow_is_seen(two_sided: bool):
    """Catches an infinite gradient of one rank that its code hides: the update would continue with a wrong value."""
    model = small_net()

    def run(rank: int, communicator: Any) -> tuple[bool, torch.Tensor]:
        engine, *_ = zeropage.initialize(
            model=copy.deepcopy(model), config=quantized(fp16={"enabled": True, "initial_scale_power": 4})
        )
        loss = engine(*part_of_batch(token_batch(0), 2, rank))
        engine.backward(loss * (float("inf") if rank == 1 else 1.0))
        engine.step()
        return engine.was_step_applied(), flat_parameters(engine.module)

    for applied, parameters in run_ranks(2, run, two_sided=two_sided):
        assert not applied
        assert torch.equal(parameters, flat_parameters(model.half()))


def test_parameters_on_a_drive(tmp_path: Path):
    """Catches pages that are read from a drive and sent in another way than those in memory."""
    drive = {"device": "nvme", "nvme_path": str(tmp_path), "buffer_count": 3}
    offload = {"offload_param": {**drive, "max_in_cpu": 0}, "offload_optimizer": {**drive, "buffer_count": 4}}
    in_memory = train_ranks(small_net(), 2, quantized(zeropage={"page_numel": 4096}), 4)[0]
    on_drive = train_ranks(small_net(), 2, quantized(zero_optimization=offload, zeropage={"page_numel": 4096}), 4)[0]
    assert torch.equal(on_drive.parameters, in_memory.parameters)


def test_one_rank_sends_nothing_and_rounds_nothing():
    """Catches values that are rounded where nothing is sent."""
    exact = train_ranks(small_net(), 1, config_of(3), 3)[0].parameters
    assert torch.equal(train_ranks(small_net(), 1, quantized(), 3)[0].parameters, exact)


LAYERS, WIDTH = 6, 512


def bytes_of(mode: str) -> tuple[int, int]:
    """Loopback bytes of a forward that gathers everything, and of the backward after it, which gathers nothing."""
    torch.manual_seed(0)
    layers = [layer for _ in range(LAYERS) for layer in (nn.Linear(WIDTH, WIDTH, bias=False), nn.Tanh())]
    config = quantized(
        mode=MODES[mode] if mode != "exact" else {},
        batch=4 * dist.get_world_size(),
        bf16={"enabled": True},
        zeropage={"communicator": "c10d"},
    )
    engine, *_ = zeropage.initialize(model=nn.Sequential(*layers), config=config)
    sent = []
    for _ in range(3):
        counts = []
        loss = None
        for part in (
            lambda: engine(torch.ones(4, WIDTH, dtype=torch.bfloat16)).float().square().mean(),
            lambda: engine.backward(loss),
        ):
            dist.barrier()
            before = loopback_bytes()
            dist.barrier()
            loss = part()
            dist.barrier()
            counts.append(loopback_bytes() - before)
        engine.step()
        sent.append(counts)
    return sent[-1][0], sent[-1][1]


def bytes_of_modes() -> dict[str, tuple[int, int]]:
    dist.init_process_group("gloo")
    return {mode: bytes_of(mode) for mode in ("exact", "both")}


@pytest.mark.slow
@pytest.mark.parametrize("world", (2, 4))
def test_bytes_on_the_wire(world: int, tmp_path: Path):
    """Catches scales, padding or exact copies that are sent with the codes: gathers take at most 0.52 of bf16's bytes
    and reductions 0.28, counted by the system."""
    counted = run_in_namespace(world, "test_quantized", "bytes_of_modes", json.dumps({}), tmp_path)[0]
    parameter_bytes = 2 * LAYERS * WIDTH * WIDTH * (world - 1)  # of all ranks
    assert counted["exact"][0] > parameter_bytes
    assert counted["exact"][1] > parameter_bytes
    ratios = [both / exact for both, exact in zip(counted["both"], counted["exact"], strict=True)]
    print(f"{world} ranks: gathers {ratios[0]:.4f}, reductions {ratios[1]:.4f} of bf16's bytes")
    assert ratios[0] <= 0.52
    assert ratios[1] <= 0.28
