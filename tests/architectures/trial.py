"""One architecture: built, run in plain PyTorch, and trained three steps by the engine on two ranks, compared with
plain PyTorch."""

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from training import LossOf, engine_run, flat_parameters, plain_run

WORLD = 2
STEPS = 3
BOUND = 1e-5  # each parameter, after moves of up to 0.01 per step
MOST_PARAMETERS = 6_000_000

TRAINS = "trains"
NOT_BUILT = "not built"  # by plain PyTorch
FAULT = "fault"


@dataclass
class Result:
    library: str
    name: str
    kind: str = ""  # the class of the model
    result: str = NOT_BUILT
    detail: str = ""
    parameters: int = 0
    inputs: list[str] = field(default_factory=list)
    seconds: float = 0.0


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """The tensors with a gradient in what a model returned, in its order."""
    if isinstance(value, torch.Tensor):
        if value.is_floating_point() and value.requires_grad:
            yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)


def loss_of_output(output: Any) -> torch.Tensor:
    """A number that depends on every element of the output, also where the sum or the square of them is constant."""
    loss = torch.zeros(())
    for tensor in tensors_in(output):
        flat = tensor.float().clamp(-100, 100).flatten()
        loss = loss + (flat * torch.sin(1.0 + torch.arange(flat.numel()))).mean() + 0.1 * flat.square().mean()
    return loss


def _runs(model: nn.Module, inputs: Callable[[int], dict[str, torch.Tensor]]) -> str:
    """Nothing if the model runs, twice with the same result; else why not. Without dropout; in eval mode where training
    is random."""
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.Dropout1d | nn.Dropout2d | nn.Dropout3d):
            module.p = 0.0
    for training in (True, False):
        model.train(training)
        loss = loss_of_output(model(**inputs(0)))
        if not loss.requires_grad:
            return "its output has no gradient"
        if torch.equal(loss, loss_of_output(model(**inputs(0)))):
            loss.backward()
            model.zero_grad()
            return "" if torch.isfinite(loss) else "its output is not finite"
    return "two runs on one input give two results"


def _compare(model: nn.Module, inputs: Callable[[int], dict[str, torch.Tensor]], result: Result) -> None:
    def loss_of(on: Any, step: int, rank: int) -> torch.Tensor:
        return loss_of_output(on(**inputs(1 + WORLD * step + rank)))

    expected = plain_run(model, loss_of, WORLD, STEPS)
    if not torch.isfinite(expected).all():
        result.detail = "plain PyTorch ends with values that are not finite"
        return
    if torch.equal(expected, flat_parameters(model)):
        result.detail = "plain PyTorch trains nothing"
        return
    result.result = FAULT
    found = engine_run(model, loss_of, WORLD, STEPS)
    difference = (found - expected).abs().max().item()
    result.detail = f"differs by {difference:.1e}"
    if difference >= BOUND:
        rounding = _effect_of_rounding(model, loss_of, expected)
        result.detail += f"; by {rounding:.1e} in plain PyTorch when the last bit of the weights changes"
        if not difference < 5 * rounding:
            return
    result.result = TRAINS


def _effect_of_rounding(model: nn.Module, loss_of: LossOf, expected: torch.Tensor) -> float:
    """How far apart plain PyTorch ends from weights that differ in their last bits: a norm over two values, for
    example, amplifies small differences."""
    differences = []
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        changed = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in changed.parameters():
                if parameter.is_floating_point():
                    parameter.mul_(1 + 2.0**-23 * torch.randint(-1, 2, parameter.shape, generator=generator))
        differences.append((plain_run(changed, loss_of, WORLD, STEPS) - expected).abs().max().item())
    return max(differences)


def _try_builds(build: Callable[[str], Iterator[tuple[nn.Module, Any]]], result: Result) -> None:
    """Compares the first model that runs in plain PyTorch; if none does, the first problem is the result's."""
    problems: list[str] = []
    for model, inputs in build(result.name):
        parameters = sum(p.numel() for p in model.parameters())
        try:
            problem = (
                f"{parameters / 1e6:.0f} million parameters are too many"
                if parameters > MOST_PARAMETERS
                else _runs(model, inputs)
            )
        except Exception as error:  # other people's code
            problem = f"{type(error).__name__}: {error}"
        if not problem:
            result.kind, result.parameters, result.inputs = type(model).__name__, parameters, list(inputs(0))
            _compare(model, inputs, result)
            return
        problems.append(problem)
        result.detail = problems[0]
    result.detail = problems[0] if problems else "no class whose inputs are known"


def try_one(library: str, name: str, build: Callable[[str], Iterator[tuple[nn.Module, Any]]]) -> Result:
    """Never raises: what went wrong is in the result."""
    result = Result(library, name)
    begin = time.perf_counter()
    torch.manual_seed(0)
    try:
        _try_builds(build, result)
    except Exception as error:
        if result.result == FAULT or not result.detail:
            result.detail = f"{type(error).__name__}: {error}"
    result.detail = " ".join(result.detail.split())
    result.seconds = time.perf_counter() - begin
    return result
