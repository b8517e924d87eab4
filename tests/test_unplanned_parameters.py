"""Parameters and gradients that an engine does not expect: unfrozen layers, exchanged data, other optimizers and other
backwards, writes by one rank. What trains is compared with plain PyTorch; what cannot train is an error or is reported
by name."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from training import (
    DAMPING_EPS,
    LEARNING_RATE,
    WEIGHT_DECAY,
    config_of,
    flat_parameters,
    part_of_batch,
    small_net,
    token_batch,
)

import zeropage
from zeropage.errors import ConfigError, PeerError, UsageError
from zeropage.testing import run_ranks

WORLD = 2
STAGES = pytest.mark.parametrize("stage", [0, 1, 2, 3])
Between = Callable[[nn.Module, int], None]


NET = small_net()  # copied: torch's random generator is shared by ranks that are threads


def net() -> nn.Module:
    return copy.deepcopy(NET)


def frozen_net() -> nn.Module:
    """Its first block is frozen."""
    model = net()
    model.expand[0].requires_grad_(False)
    model.norms[0].requires_grad_(False)
    return model


def plain(model: nn.Module, steps: int, between: Between, accumulation: int = 1) -> torch.Tensor:
    """AdamW on all parameters in one process; `between(model, step)` runs before each step's forward."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, eps=DAMPING_EPS)
    for step in range(steps):
        between(model, step)
        optimizer.zero_grad()
        parts = [
            part_of_batch(token_batch(step), WORLD, rank, micro, accumulation)
            for rank in range(WORLD)
            for micro in range(accumulation)
        ]
        for part in parts:
            (model(*part) / len(parts)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
    return flat_parameters(model)


def trained(
    model: nn.Module,
    stage: int,
    steps: int,
    between: Between,
    accumulation: int = 1,
    backward: Any = None,
    world: int = WORLD,
    **sections: Any,
) -> list[Any]:
    """The same on ranks: (parameters, engine's memory of optimizer state) of each."""
    config = config_of(
        stage, batch=4 * WORLD, accumulation=accumulation, eps=DAMPING_EPS, zeropage={"page_numel": 4096}, **sections
    )

    def run(rank: int, communicator: Any) -> Any:
        engine, *_ = zeropage.initialize(model=copy.deepcopy(model), config=config, model_parameters=None)
        for step in range(steps):
            between(engine.module, step)
            for micro in range(accumulation):
                loss = engine(*part_of_batch(token_batch(step), WORLD, rank, micro, accumulation))
                backward(engine, loss) if backward else engine.backward(loss)
                engine.step()
        return flat_parameters(engine.module), engine.memory_report()

    return run_ranks(world, run)


def assert_same(outcomes: list[Any], expected: torch.Tensor, bound: float = 1e-5) -> None:
    for parameters, *_ in outcomes:
        assert (parameters - expected).abs().max() < bound


# -- frozen and unfrozen


@pytest.mark.parametrize("accumulation", [1, 2])
@STAGES
def test_unfrozen_layers_train_and_frozen_ones_stop(stage: int, accumulation: int):
    """Catches layers whose requires_grad counts only at initialize, moments that do not start at zero, and memory that
    is not counted."""

    def unfreeze(model: nn.Module, step: int) -> None:
        if step in (2, 5):
            model.expand[0].requires_grad_(step == 2)
            model.norms[0].requires_grad_(step == 2)

    outcomes = trained(frozen_net(), stage, 7, unfreeze, accumulation)
    assert_same(outcomes, plain(frozen_net(), 7, unfreeze, accumulation))
    before = trained(frozen_net(), stage, 1, lambda model, step: None, accumulation)
    for kind in ("gradients", "optimizer"):
        assert outcomes[0][1].ranks[0][kind] > before[0][1].ranks[0][kind]


def test_an_unfrozen_layer_of_one_rank():
    """Catches ranks that disagree which layers train when only one rank's graph reaches an unfrozen one."""

    def run(rank: int, communicator: Any) -> torch.Tensor:
        model = frozen_net()
        engine, *_ = zeropage.initialize(model=model, config=config_of(2, batch=8, eps=DAMPING_EPS))
        for step in range(3):
            if step == 1 and rank == 1:
                model.expand[0].requires_grad_(True)
            engine.backward(engine(*part_of_batch(token_batch(step), WORLD, rank)))
            engine.step()
        return flat_parameters(model)

    ended = run_ranks(WORLD, run)
    assert torch.equal(ended[0], ended[1])


def test_unfrozen_with_bf16_masters_and_a_checkpoint(tmp_path):
    """Catches masters that do not follow an unfrozen layer, and a resumed run whose moments of that layer start at
    zero."""
    sections: dict[str, Any] = {"bf16": {"enabled": True}}

    def unfreeze(model: nn.Module, step: int) -> None:
        if step >= 2:
            model.requires_grad_(True)

    def run(rank: int, communicator: Any) -> tuple[torch.Tensor, torch.Tensor]:
        ended = []
        for resume in (False, True):
            engine, *_ = zeropage.initialize(
                model=frozen_net(), config=config_of(2, batch=8, eps=DAMPING_EPS, **copy.deepcopy(sections))
            )
            if resume:
                engine.load_checkpoint(tmp_path)
            for step in range(4 if resume else 0, 6):
                if step == 4 and not resume:
                    engine.save_checkpoint(tmp_path)
                unfreeze(engine.module, step)
                engine.backward(engine(*part_of_batch(token_batch(step), WORLD, rank)))
                engine.step()
            ended.append(flat_parameters(engine.module))
        return ended[0], ended[1]

    straight, resumed = run_ranks(WORLD, run)[0]
    assert torch.equal(straight, resumed)
    assert (straight - plain(frozen_net(), 6, unfreeze)).abs().max() < 0.03  # bf16 has 8 bits


# -- exchanged data and accumulators


class Doubled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    def right_inverse(self, x: torch.Tensor) -> torch.Tensor:
        return x / 2


def replace_data(model: nn.Module) -> None:
    weight = model.contract[0].weight
    weight.data = weight.detach() * 0.5


def set_storage(model: nn.Module) -> None:
    with torch.no_grad():
        model.contract[0].weight.set_(model.contract[0].weight * 0.5)


def swap(model: nn.Module) -> None:
    torch.utils.swap_tensors(model.contract[0].weight, nn.Parameter(model.contract[0].weight.detach() * 0.5))


def parametrize_weight(model: nn.Module) -> None:
    parametrize.register_parametrization(model.contract[0], "weight", Doubled())


def assign_through(model: nn.Module) -> None:
    parametrize_weight(model)
    model.contract[0].weight = model.contract[0].weight.detach() * 0.5


@pytest.mark.parametrize("exchange", [replace_data, set_storage, swap, parametrize_weight, assign_through])
@STAGES
def test_exchanged_parameters_continue_to_train(stage: int, exchange: Callable[[nn.Module], None]):
    """Catches a parameter that torch gave another gradient accumulator, and that silently stops training."""

    def between(model: nn.Module, step: int) -> None:
        if step == 2:
            exchange(model)

    assert_same(trained(net(), stage, 4, between), plain(net(), 4, between))


def test_exchanged_between_forward_and_backward():
    """Catches a gradient that no hook saw because the accumulator changed after the forward, and that is lost."""

    def run(rank: int, communicator: Any) -> torch.Tensor:
        model = net()
        engine, *_ = zeropage.initialize(model=model, config=config_of(1, batch=8, eps=DAMPING_EPS))
        for step in range(2):
            loss = engine(*part_of_batch(token_batch(step), WORLD, rank))
            for hook in (model.contract[0].weight, model.tiny):
                hook.requires_grad_(False).requires_grad_(True)
            engine.backward(loss)
            engine.step()
            assert all(p.grad is None for p in model.parameters())
        return flat_parameters(model)

    assert_same([(parameters,) for parameters in run_ranks(WORLD, run)], plain(net(), 2, lambda model, step: None))


def test_gradients_that_the_program_writes():
    """Catches a p.grad that the program writes and that the update does not use."""

    def run(rank: int, communicator: Any) -> torch.Tensor:
        model = nn.Linear(3, 2)
        nn.init.ones_(model.weight)
        sgd = {"optimizer": {"type": "SGD", "params": {"lr": 0.5}}}
        engine, *_ = zeropage.initialize(model=model, config={**config_of(1, batch=2, clipping=0.0), **sgd})
        model.weight.grad = torch.full((2, 3), float(rank))
        engine.step()
        return model.weight.detach().clone()

    assert torch.equal(run_ranks(WORLD, run)[0], torch.full((2, 3), 1 - 0.5 * 0.5))


# -- other optimizers, other parameters


def test_an_optimizer_of_another_model_is_refused():
    """Catches updates that continue and train nothing, because the optimizer has a copy's parameters."""
    model = net()
    with pytest.raises(ConfigError, match=r"parameter 0 of group 0.*not one of the model's, and 14 .*'tiny'"):
        zeropage.initialize(
            model=model, config={"train_batch_size": 8}, optimizer=torch.optim.AdamW(copy.deepcopy(model).parameters())
        )
    mixed = [*model.expand.parameters(), *copy.deepcopy(model).contract.parameters()]
    with pytest.raises(ConfigError, match="parameter 4 of group 0"):
        zeropage.initialize(model=model, config={"train_batch_size": 8}, model_parameters=mixed)


def test_parameters_in_no_group_are_reported(capfd):
    """Catches parameters with gradients that no group has, at initialize and when they are unfrozen later."""
    model = net()
    model.contract.requires_grad_(False)
    groups = [*model.expand.parameters(), *model.norms.parameters(), model.embedding.weight]
    optimizer = {"type": "AdamW", "params": {"lr": 1e-3}}
    engine, *_ = zeropage.initialize(
        model=model, config={"train_batch_size": 8, "optimizer": optimizer}, model_parameters=groups
    )
    assert "1 parameter ('tiny') require gradients and are in no group" in capfd.readouterr().err
    for step in range(3):
        if step == 1:
            model.contract[0].requires_grad_(True)
        engine.backward(engine(*token_batch(step)))
        engine.step()
    messages = [line for line in capfd.readouterr().err.splitlines() if "in no group" in line]
    assert len(messages) == 1 and "'contract.0.weight', 'contract.0.bias'" in messages[0]


class Proxies(nn.Module):
    """A loss module with parameters."""

    def __init__(self):
        super().__init__()
        self.centers = nn.Parameter(torch.linspace(-1, 1, 8))

    def forward(self, loss: torch.Tensor) -> torch.Tensor:
        return loss * (1 + self.centers.square().sum())


@STAGES
def test_parameters_outside_the_model(stage: int):
    """Catches a loss module whose parameters an edit by one rank does not reach, or whose names say nothing."""

    def steps(
        model: nn.Module, proxies: nn.Module, optimizer_step: Callable[[int], None], edits: bool = True
    ) -> torch.Tensor:
        for step in range(3):
            if step == 1:
                with zeropage.zero.GatheredParameters(list(proxies.parameters()), modifier_rank=0), torch.no_grad():
                    proxies.centers.mul_(0.5 if edits else 7.0)
            optimizer_step(step)
        with zeropage.zero.GatheredParameters([*model.parameters(), *proxies.parameters()]):
            return torch.cat([p.detach().flatten() for p in (*model.parameters(), *proxies.parameters())])

    def on_plain() -> torch.Tensor:
        model, proxies = net(), Proxies()
        every = [*model.parameters(), *proxies.parameters()]
        optimizer = torch.optim.AdamW(every, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, eps=DAMPING_EPS)

        def one(step: int) -> None:
            optimizer.zero_grad()
            for rank in range(WORLD):
                (proxies(model(*part_of_batch(token_batch(step), WORLD, rank))) / WORLD).backward()
            torch.nn.utils.clip_grad_norm_(every, 0.5)
            optimizer.step()

        return steps(model, proxies, one)

    def run(rank: int, communicator: Any) -> torch.Tensor:
        model, proxies = net(), Proxies()
        every = [*model.parameters(), *proxies.parameters()]
        engine, *_ = zeropage.initialize(
            model=model, config=config_of(stage, batch=8, eps=DAMPING_EPS), model_parameters=every
        )
        assert engine._named[-1][0] == "Proxies.centers"

        def one(step: int) -> None:
            engine.backward(proxies(engine(*part_of_batch(token_batch(step), WORLD, rank))))
            engine.step()

        return steps(model, proxies, one, edits=rank == 0)

    for found in run_ranks(WORLD, run):
        assert (found - on_plain()).abs().max() < 1e-5


def test_parameters_added_after_initialize_are_reported(capfd):
    """Catches a new head that silently is neither trained nor saved."""
    model = net()
    engine, *_ = zeropage.initialize(model=model, config=config_of(1, batch=8))
    model.head = nn.Linear(3, 3)
    for step in range(2):
        engine.backward(engine(*token_batch(step)))
        engine.step()
    messages = [line for line in capfd.readouterr().err.splitlines() if "after zeropage.initialize" in line]
    assert len(messages) == 1 and "'head.weight', 'head.bias'" in messages[0]


# -- other backwards


def by_scale(engine: Any, loss: torch.Tensor) -> None:
    engine.scale(loss).backward()


def by_loss(engine: Any, loss: torch.Tensor) -> None:
    loss.backward()


@pytest.mark.parametrize("backward", [by_scale, by_loss])
@STAGES
def test_backwards_that_the_program_runs(stage: int, backward: Any):
    """Catches gradients that are not divided by the accumulation steps, or not reduced."""
    outcomes = trained(net(), stage, 3, lambda model, step: None, 2, backward)
    assert_same(outcomes, plain(net(), 3, lambda model, step: None, 2))


@STAGES
def test_scaled_backward_in_fp16(stage: int):
    """Catches gradients of fp16 without the loss scale: engine.scale is as good as engine.backward, and loss.backward()
    is refused."""
    fp16: dict[str, Any] = {"fp16": {"enabled": True, "initial_scale_power": 12}}
    ours = trained(net(), stage, 2, lambda model, step: None, backward=by_scale, **copy.deepcopy(fp16))
    theirs = trained(net(), stage, 2, lambda model, step: None, **copy.deepcopy(fp16))
    assert torch.equal(ours[0][0], theirs[0][0])
    with pytest.raises(UsageError, match=r"loss scale, 4096.*engine\.scale\(loss\)\.backward\(\)"):
        trained(net(), stage, 1, lambda model, step: None, backward=by_loss, **copy.deepcopy(fp16))


def test_losses_and_metrics_without_the_engines_backward(tmp_path):
    """Catches a metrics file or a progress line that ends the run because the engine does not know the loss."""
    path = tmp_path / "metrics.jsonl"
    sections: dict[str, Any] = {
        "zeropage": {"metrics_file": str(path)},
        "steps_per_print": 1,
        "bf16": {"enabled": True},
    }
    engine, *_ = zeropage.initialize(model=net(), config=config_of(1, batch=8, **sections))
    for backward in (by_loss, by_scale):
        backward(engine, engine(*token_batch(0)))
        engine.step()
    with pytest.raises(UsageError, match=r"loss\.backward\(\) does not tell"):
        engine._losses = type(engine._losses)()
        engine.mean_loss()
    assert '"loss":null' in path.read_text()


# -- writes by one rank


@pytest.mark.parametrize("precision", [{}, {"bf16": {"enabled": True}}])
@STAGES
def test_values_that_only_one_rank_loads(stage: int, precision: dict[str, Any]):
    """Catches two models in one run: load_state_dict on rank 0 alone."""
    other, third = small_net(1).state_dict(), small_net(2).state_dict()

    def run(rank: int, communicator: Any) -> None:
        config = config_of(stage, batch=8, zeropage={"timeout_ms": 5000}, **copy.deepcopy(precision))
        engine, *_ = zeropage.initialize(model=net(), config=config)
        for step in range(3):
            engine.backward(engine(*part_of_batch(token_batch(step), WORLD, rank)))
            engine.step()
            if step == 0:  # on all ranks: allowed
                engine.module.load_state_dict(other)
            if step == 1 and rank == 0:
                engine.module.load_state_dict(third)

    with pytest.raises(
        PeerError, match=r"parameter '[a-z0-9.]+' was written outside an update on rank\(s\) 0, .* ranks 0 and 1"
    ):
        run_ranks(WORLD, run, timeout_s=20)
