"""Every optimizer of the engine: against torch's, against each other on all stages, and the memory its state takes."""

import functools

import pytest
import torch
from torch import nn
from training import config_of, flat_parameters, small_net, token_batch, train_ranks

import zeropage
from zeropage import errors

STEPS = 100
NUMEL = 10_007
# torch's vector code fuses multiply-add where the engine rounds twice. After 100 steps on parameters around 1 that have
# moved by up to 1, results may differ by this much: 12 fp32 ulp of 1.
BOUND = 1.5e-6

# Configured name and parameters, and the same of torch.
OPTIMIZERS = {
    "AdamW": ("AdamW", {"lr": 1e-2, "weight_decay": 0.1}, torch.optim.AdamW),
    "Adam with L2": ("Adam", {"lr": 1e-2, "weight_decay": 0.1, "adam_w_mode": False}, torch.optim.Adam),
    "Adagrad": ("Adagrad", {"lr": 1e-1, "weight_decay": 0.1, "lr_decay": 0.01}, torch.optim.Adagrad),
    "Adagrad from 0.5": ("Adagrad", {"initial_accumulator_value": 0.5}, torch.optim.Adagrad),
    "SGD": ("SGD", {"lr": 1e-2, "weight_decay": 0.1}, torch.optim.SGD),
    "SGD with momentum": ("SGD", {"lr": 1e-3, "momentum": 0.9, "dampening": 0.1, "weight_decay": 0.1}, torch.optim.SGD),
    "SGD after Nesterov": ("SGD", {"lr": 1e-3, "momentum": 0.9, "nesterov": True}, torch.optim.SGD),
}
STATES = {"AdamW": 2, "Lamb": 2, "Lion": 1, "Adagrad": 1, "SGD": 0, "SGD with momentum": 1}


class Vector(nn.Module):
    """One parameter whose gradient is what the forward is given."""

    def __init__(self, numel: int = NUMEL):
        super().__init__()
        self.p = nn.Parameter(torch.randn(numel, generator=torch.Generator().manual_seed(0)))

    def forward(self, gradient: torch.Tensor) -> torch.Tensor:
        return (self.p * gradient).sum()


def gradient_of(step: int, numel: int = NUMEL) -> torch.Tensor:
    return torch.randn(numel, generator=torch.Generator().manual_seed(step + 1))


def train(engine, steps: int, numel: int = NUMEL) -> torch.Tensor:
    for step in range(steps):
        engine.backward(engine(gradient_of(step, numel)))
        engine.step()
    return engine.module.p.detach().clone()


def section(name: str) -> dict:
    if name == "Lion":
        return {"type": "Lion", "params": {"lr": 1e-3, "weight_decay": 0.1}}
    if name == "Lamb":
        return {"type": "Lamb", "params": {"lr": 1e-2, "weight_decay": 0.1, "max_coeff": 5, "min_coeff": 0.3}}
    kind, params, _ = OPTIMIZERS[name]
    return {"type": kind, "params": params}


def engine_for(name: str, numel: int = NUMEL, **sections):
    config = {**config_of(0, batch=1, **{"clipping": 0.0, **sections}), "optimizer": section(name)}
    return zeropage.initialize(model=Vector(numel), config=config)[0]


@functools.cache
def torch_result(name: str) -> torch.Tensor:
    _, params, make = OPTIMIZERS[name]
    model = Vector()
    optimizer = make(model.parameters(), **{key: value for key, value in params.items() if key != "adam_w_mode"})
    for step in range(STEPS):
        model.p.grad = gradient_of(step)
        optimizer.step()
    return model.p.detach()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_hundred_steps_follow_torch(name):
    """Catches a formula that is not torch's, and a parameter of the configuration without effect."""
    found = train(engine_for(name), STEPS)
    assert (found - torch_result(name)).abs().max().item() < BOUND


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_objects_are_updated_like_configured_ones(name):
    """Catches an option of an optimizer object that the engine does not get: same bits as by configuration."""
    _, params, make = OPTIMIZERS[name]
    model = Vector()
    client = make(model.parameters(), **{key: value for key, value in params.items() if key != "adam_w_mode"})
    config = config_of(0, batch=1, clipping=0.0)
    del config["optimizer"]
    engine, *_ = zeropage.initialize(model=model, optimizer=client, config=config)
    assert torch.equal(train(engine, 5), train(engine_for(name), 5))


def test_lion_follows_its_paper():
    """Catches a wrong formula, in double; a sign near zero may change, which moves one element by two rates."""
    lr, decay, beta1, beta2 = 1e-3, 0.1, 0.9, 0.99
    p, m = Vector().p.detach().double(), torch.zeros(NUMEL, dtype=torch.double)
    for step in range(STEPS):
        g = gradient_of(step).double()
        p = p * (1 - lr * decay) - lr * torch.sign(beta1 * m + (1 - beta1) * g)
        m = beta2 * m + (1 - beta2) * g
    difference = (train(engine_for("Lion"), STEPS) - p).abs()
    assert difference.median().item() < BOUND and (difference > 1e-5).sum() <= 2


def lamb_by_hand(p: torch.Tensor, m: torch.Tensor, v: torch.Tensor, g: torch.Tensor, step: int) -> None:
    """One step of the optimizer `section("Lamb")` on whole parameters, in the type of the tensors."""
    lr, decay, beta1, beta2, eps = 1e-2, 0.1, 0.9, 0.999, 1e-8
    m.mul_(beta1).add_(g, alpha=1 - beta1)
    v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
    direction = m / (1 - beta1**step) / ((v / (1 - beta2**step)).sqrt() + eps) + decay * p
    ratio = (p.norm() / direction.norm()).clamp(0.3, 5.0) if p.norm() > 0 and direction.norm() > 0 else 1.0
    p.sub_(direction * lr * ratio)


def test_lamb_follows_its_formula():
    """Catches moments or a ratio that are not the paper's, in double. Parameters reach 3, where an ulp is twice that of
    1."""
    p = Vector().p.detach().double()
    m, v = torch.zeros_like(p), torch.zeros_like(p)
    for step in range(STEPS):
        lamb_by_hand(p, m, v, gradient_of(step).double(), step + 1)
    assert (train(engine_for("Lamb"), STEPS) - p).abs().max().item() < 2 * BOUND


@pytest.mark.parametrize("stage", (0, 1, 3))
def test_lamb_follows_its_formula_over_ranks(stage):
    """Catches norms of parts of a parameter instead of all of it: two ranks, pages that cut parameters, against plain
    PyTorch."""
    steps = 6
    plain = small_net()
    parameters = list(plain.parameters())
    states = [(torch.zeros_like(p), torch.zeros_like(p)) for p in parameters]
    for step in range(steps):
        gradients = torch.autograd.grad(plain(*token_batch(step)), parameters)
        with torch.no_grad():
            for p, (m, v), g in zip(parameters, states, gradients, strict=True):
                lamb_by_hand(p, m, v, g, step + 1)
    config = {**config_of(stage, clipping=0.0, zeropage={"page_numel": 4096}), "optimizer": section("Lamb")}
    found = train_ranks(small_net(), 2, config, steps)[0].parameters
    difference = (found - flat_parameters(plain)).abs()
    assert difference.max().item() < 2e-4 and difference.mean().item() < 2e-6


@pytest.mark.parametrize("name", STATES)
def test_stages_give_the_same_bits(name):
    """Catches state that is not where the shard is, on any stage."""

    def parameters(stage: int) -> torch.Tensor:
        config = {**config_of(stage, zeropage={"page_numel": 4096}), "optimizer": section(name)}
        return train_ranks(small_net(), 2, config, 4)[0].parameters

    expected = parameters(0)
    assert all(torch.equal(parameters(stage), expected) for stage in (1, 2, 3))


@pytest.mark.parametrize("name", STATES)
def test_state_takes_the_bytes_of_the_formula(name):
    """Catches moments that an optimizer does not need, and a formula with another number of them."""
    numel = 1 << 16
    for precision, master in (("fp32", 0), ("bf16", 1)):
        engine = engine_for(name, numel, **({"bf16": {"enabled": True}} if master else {}))
        memory = engine.memory_report()
        assert memory.formula.optimizer == memory.ranks[0]["optimizer"] == 4 * numel * (STATES[name] + master), (
            precision
        )


def test_threads_do_not_change_results():
    """Catches an update or a norm that depends on how many threads share it."""
    numel = 600_001

    def result(threads: int) -> torch.Tensor:
        torch.set_num_threads(threads)
        engine = engine_for("AdamW", numel, clipping=0.5)
        return train(engine, 3, numel)

    assert torch.equal(result(1), result(3))


def test_momentum_from_the_schedule():
    """Catches a schedule of momenta that does not reach SGD."""
    schedule = {"type": "OneCycle", "params": {"cycle_min_lr": 1e-3, "cycle_max_lr": 1e-2, "cycle_first_step_size": 2}}
    engine = engine_for("SGD with momentum", 8, scheduler=schedule)
    train(engine, 1, 8)
    assert engine.get_mom() == [pytest.approx(0.85)]


def test_momentum_cannot_appear_from_nowhere():
    """Catches a momentum that is switched on where there is no memory for it."""
    engine = engine_for("SGD", 8)
    engine.optimizer.param_groups[0]["momentum"] = 0.9
    with pytest.raises(errors.UsageError, match="momentum"):
        train(engine, 1, 8)
