"""Less usual uses of autograd at stage 3 give what plain PyTorch gives: two ranks, a page per parameter, nothing kept
gathered."""

import copy
import ctypes

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jacrev, vmap
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from training import assert_trains_like_plain, engine_run, flat_parameters, paged_config, small_net

import zeropage
from zeropage.testing import run_ranks


def numbers(*shape: int, step: int, rank: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1000 * step + rank))


def seeded(make) -> nn.Module:
    torch.manual_seed(0)
    return make()


def mlp() -> nn.Module:
    return seeded(lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2)))


def module_of(model) -> nn.Module:
    return getattr(model, "module", model)


def raw_values(tensor: torch.Tensor) -> torch.Tensor:
    """A copy made through the address, which no operator sees."""
    pointer = ctypes.cast(tensor.data_ptr(), ctypes.POINTER(ctypes.c_float * tensor.numel()))
    return torch.tensor(list(pointer.contents)).view(tensor.shape)


class RawLinear(torch.autograd.Function):
    """x [B, in], weight [out, in] -> x weight^T, with the weight read by its address in both directions."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ raw_values(weight).t()

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        return gradient @ raw_values(weight), gradient.t() @ x


class RawNet(nn.Module):
    def __init__(self, raw: bool):
        super().__init__()
        torch.manual_seed(0)
        self.raw = raw
        self.layers = nn.ModuleList(nn.Linear(6, 6, bias=False) for _ in range(3))
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(RawLinear.apply(x, layer.weight) if self.raw else x @ layer.weight.t())
        return self.head(x).square().mean()


@pytest.mark.parametrize("two_sided", (False, True))
def test_functions_that_read_parameters_by_address(two_sided):
    """Catches kernels that get the address of an absent parameter: Triton and pybind kernels in custom functions work
    like this."""
    loss_of = lambda model, step, rank: model(numbers(4, 6, step=step, rank=rank))  # noqa: E731
    by_address = engine_run(RawNet(raw=True), loss_of, 2, 4, two_sided=two_sided)
    by_operators = engine_run(RawNet(raw=False), loss_of, 2, 4)
    assert torch.equal(by_address, by_operators)


def test_functions_not_observed_get_the_message():
    """Catches a missing error when the observer is switched off: the access itself must raise one with advice."""
    config = paged_config(zeropage={"observe_functions": False})
    with pytest.raises(RuntimeError, match=r"layers\.0\.weight.*GatheredParameters"):
        engine_run(
            RawNet(raw=True), lambda model, step, rank: model(numbers(4, 6, step=step, rank=rank)), 2, 1, config=config
        )


def checkpointed(reentrant: bool):
    """Every layer recomputed in the backward; the first one's weight is tied into a second segment."""

    def loss_of(model, step, rank):
        layers = module_of(model)
        x = numbers(4, 6, step=step, rank=rank).requires_grad_()
        h = checkpoint(layers[0], x, use_reentrant=reentrant)
        h = checkpoint(lambda t: layers[2](torch.tanh(t)), h, use_reentrant=reentrant)
        h = checkpoint(lambda t: t @ layers[0].weight, h, use_reentrant=reentrant)
        h = checkpoint(lambda t: layers[4](layers[2](layers[0](t))), h, use_reentrant=reentrant)
        return h.square().mean()

    return loss_of


@pytest.mark.parametrize("page_numel", (1, 100_000))
@pytest.mark.parametrize("stage", (2, 3))
@pytest.mark.parametrize("reentrant", (False, True))
def test_checkpointing(reentrant, stage, page_numel):
    """Catches faults inside a backward that runs forwards, and gradients that arrive again after their page was
    reduced."""
    config = paged_config(zero_optimization={"stage": stage}, zeropage={"page_numel": page_numel})
    assert_trains_like_plain(mlp(), checkpointed(reentrant), config=config)


def functional_loss(model, step, rank):
    module = module_of(model)
    halved = {name: p * 0.5 for name, p in module.named_parameters()}
    return functional_call(module, halved, (numbers(4, 6, step=step, rank=rank),)).square().mean()


def vmap_loss(model, step, rank):
    return vmap(model)(numbers(3, 4, 6, step=step, rank=rank)).square().mean()


def vmap_over_weights_loss(model, step, rank):
    weight = module_of(model)[2].weight
    rows = vmap(lambda row, x: (row * x).sum(), in_dims=(0, None))(weight, numbers(8, step=step, rank=rank))
    return rows.square().mean() + model(numbers(4, 6, step=step, rank=rank)).square().mean()


def per_sample_loss(model, step, rank):
    """The loss weighted by the norms of per-sample gradients."""
    module = module_of(model)
    x = numbers(4, 6, step=step, rank=rank)
    values = {name: p.detach() for name, p in module.named_parameters()}
    of_sample = grad(lambda parameters, sample: functional_call(module, parameters, (sample,)).square().sum())
    gradients = vmap(of_sample, in_dims=(None, 0))(values, x)
    weights = sum(g.flatten(1).square().sum(1) for g in gradients.values()).sqrt()
    return (model(x).square().mean(1) * weights / weights.sum()).sum()


def jacobian_loss(model, step, rank):
    module = module_of(model)
    return jacrev(module)(numbers(6, step=step, rank=rank)).square().mean()


def gradient_penalty_loss(model, step, rank):
    x = numbers(4, 6, step=step, rank=rank).requires_grad_()
    out = model(x).square().mean()
    (slope,) = torch.autograd.grad(out, x, create_graph=True)
    return out + 0.1 * slope.square().sum()


def several_forwards_loss(model, step, rank):
    return sum(model(numbers(4, 6, step=step + 10 * i, rank=rank)).square().mean() for i in range(3))


LOSSES = (
    functional_loss,
    vmap_loss,
    vmap_over_weights_loss,
    per_sample_loss,
    jacobian_loss,
    gradient_penalty_loss,
    several_forwards_loss,
)


@pytest.mark.parametrize("loss_of", LOSSES)
def test_losses(loss_of):
    """Catches parameters that operators do not find in wrappers, caches and graphs of graphs."""
    assert_trains_like_plain(mlp(), loss_of)


@pytest.mark.parametrize(("cache_enabled", "bound"), [(False, 1e-5), (True, 2e-3)])
def test_autocast(cache_enabled, bound):
    """Catches casts of weights that are cached while the weights change or are freed. torch's cache is one for all
    threads: a rank that ends its autocast makes the other cast again, whose gradients are then summed in fp32 instead
    of bf16."""

    def loss_of(model, step, rank):
        with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=cache_enabled):
            out = model(numbers(4, 6, step=step, rank=rank))
            out = out + model(numbers(4, 6, step=step + 100, rank=rank))
        return out.float().square().mean()

    assert_trains_like_plain(mlp(), loss_of, steps=1, bound=bound)


def test_saved_tensors_hooks():
    """Catches parameters saved for the backward that hooks pack while they are absent."""
    seen = []

    def loss_of(model, step, rank):
        def pack(tensor):
            seen.append(tensor.shape)
            return tensor.clone()

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            return model(numbers(4, 6, step=step, rank=rank)).square().mean()

    assert_trains_like_plain(mlp(), loss_of)
    assert seen


@pytest.mark.parametrize("stage", range(4))
def test_two_backwards_for_one_step(stage):
    """Catches a second backward that replaces the gradients of the first, or is reduced in the wrong order."""
    base = mlp()
    parts = [lambda model, x: model(x).square().mean(), lambda model, x: module_of(model)[0](x).abs().mean()]

    def run(rank, communicator):
        model = copy.deepcopy(base)
        engine, *_ = zeropage.initialize(model=model, config=paged_config(zero_optimization={"stage": stage}))
        for step in range(3):
            for part in parts:
                engine.backward(part(engine, numbers(4, 6, step=step, rank=rank)))
            engine.step()
        return flat_parameters(model)

    whole = lambda model, step, rank: sum(part(model, numbers(4, 6, step=step, rank=rank)) for part in parts)  # noqa: E731
    expected = engine_run(base, whole, 2, 3)
    for found in run_ranks(2, run):
        assert (found - expected).abs().max().item() < 1e-5


def test_retained_graph():
    """Catches pages that a second backward through the same graph does not gather again."""

    def run(rank, communicator):
        engine, *_ = zeropage.initialize(model=copy.deepcopy(base), config=paged_config())
        loss = engine(numbers(4, 6, step=0, rank=rank)).square().mean()
        engine.backward(loss, retain_graph=True)
        engine.backward(loss)
        engine.step()
        return flat_parameters(engine.module)

    base = mlp()
    doubled = engine_run(
        base, lambda model, step, rank: 2 * model(numbers(4, 6, step=0, rank=rank)).square().mean(), 2, 1
    )
    for found in run_ranks(2, run):
        assert (found - doubled).abs().max().item() < 1e-6


@pytest.mark.parametrize("stage", range(4))
def test_a_graph_from_before_a_step(stage):
    """Catches a backward that silently uses parameters which were updated after its forward; torch raises, and so must
    we."""
    base = mlp()

    def run(rank, communicator):
        engine, *_ = zeropage.initialize(
            model=copy.deepcopy(base), config=paged_config(zero_optimization={"stage": stage})
        )
        losses = [engine(numbers(4, 6, step=step, rank=rank)).square().mean() for step in range(2)]
        engine.backward(losses[0])
        engine.step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            engine.backward(losses[1])

    run_ranks(2, run)


def test_hooks_on_modules_and_parameters():
    """Catches hooks of users that no longer run, or see other values than the model uses."""
    calls = {"forward": 0, "gradient": 0}

    def run(rank, communicator):
        engine, *_ = zeropage.initialize(model=copy.deepcopy(base), config=paged_config())
        first = engine.module[0]

        def on_forward(module, inputs, output):
            calls["forward"] += 1
            assert torch.equal(output, F.linear(inputs[0], first.weight, first.bias))

        def on_gradient(gradient):
            calls["gradient"] += 1
            assert gradient.shape == first.weight.shape
            return gradient * 2

        first.register_forward_hook(on_forward)
        first.weight.register_hook(on_gradient)
        engine.backward(engine(numbers(4, 6, step=0, rank=rank)).square().mean())
        engine.step()
        return engine.get_global_grad_norm()

    base = mlp()
    norms = run_ranks(2, run)
    assert calls == {"forward": 2, "gradient": 2}
    assert norms[0] == norms[1]


def test_leaf_gradients_are_the_engines():
    """Catches gradients that are kept twice, and a `.grad` where there is no gradient: after a backward `.grad` is a
    tensor of the engine without memory."""

    def run(rank, communicator):
        engine, *_ = zeropage.initialize(model=small_net(), config=paged_config(zero_optimization={"stage": 0}))
        engine.backward(engine.module.tiny.sum() + engine.module.embedding.weight.square().sum())
        there = {name: p.grad for name, p in engine.module.named_parameters() if p.grad is not None}
        assert sorted(there) == ["embedding.weight", "tiny"]
        with pytest.raises(RuntimeError, match="is not resident now"):
            there["tiny"].numpy()
        assert torch.equal(there["tiny"], torch.ones(3))

    run_ranks(2, run)
