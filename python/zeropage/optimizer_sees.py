"""The data on which an optimizer object's update of an element depends: this element, its whole parameter, or all
parameters of the model.

The configuration may set it ("zeropage.optimizer_sees"). It is known for some classes. For others a copy of the object
is tried on small parameters. The consequences:

    sees               stage 0, or one rank         stages 1 to 3
    elements           flat parts of parameters     flat parts: this rank's shards
    parameters         all, in their shapes         those that this rank owns, in their shapes
    model              all, in their shapes         refused
    not known          all, in their shapes         refused, or with "zero_allow_untested_optimizer" as parameters
"""

import copy
import json
import threading
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any

import torch

from . import _C
from .errors import ConfigError


class Sees(Enum):
    ELEMENTS = "elements"
    PARAMETERS = "parameters"
    MODEL = "model"


# Optimizers of torch whose updates are elementwise.
_ELEMENTWISE = ("Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "ASGD", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD")

# Published classes, by package and name. All others are tried. Those that need whole parameters are tried, too, because
# some sum over the model with some hyperparameters.
_OF_CLASS = {
    **{f"torch.{name}": Sees.ELEMENTS for name in _ELEMENTWISE},
    **{f"schedulefree.{name}": Sees.ELEMENTS for name in ("AdamWScheduleFree", "SGDScheduleFree", "RAdamScheduleFree")},
    "torch.Muon": Sees.PARAMETERS,
    "torch.Adafactor": Sees.PARAMETERS,
    "transformers.Adafactor": Sees.PARAMETERS,
}
# From any package: they need the loss as a function, or update during the backward.
_NOT_ALONE = (
    "LBFGS",
    "SparseAdam",
    "Lomo",
    "LOMO",
    "AdaLomo",
    "AdaLOMO",
    "SAM",
    "GSAM",
    "WSAM",
    "BSAM",
    "LookSAM",
    "GCSAM",
    "FriendlySAM",
)
# They sum over the model, but not in their first steps, or not for every gradient, so a trial does not find it.
_OF_MODEL = (
    "Prodigy",
    "DAdaptAdam",
    "DAdaptAdaGrad",
    "DAdaptAdan",
    "DAdaptLion",
    "DAdaptSGD",
    "DAdaptAdanIP",
    "DAdaptLionPreprint",
)
_TRIED_STEPS = 12
_one_trial = threading.Lock()  # warnings and the compiler's stance are global to the process, and ranks may be threads
_LARGEST_EXTENT = 6


def check_steps_alone(optimizer: torch.optim.Optimizer) -> None:
    """Raises ConfigError for an optimizer whose step() alone is no update."""
    if any(base.__name__ in _NOT_ALONE for base in type(optimizer).__mro__):
        raise ConfigError(
            f"the optimizer {_name_of(optimizer)} needs more than gradients once per update (the loss as a function, sparse gradients, or the "
            "backward itself), and the engine calls step() alone: use another one"
        )


def takes_whole(
    optimizer: torch.optim.Optimizer, config: _C.Config, world_size: int
) -> Callable[[dict[str, Any]], bool]:
    """Whether the optimizer gets whole parameters of a group. Call before its first step. Raises ConfigError when it
    cannot run at this stage."""
    own = getattr(type(optimizer), "takes_whole", None)  # for classes of this package
    if own is not None:
        return own
    in_parts = config.stage > 0 and world_size > 1
    named = json.loads(config.effective_json)["zeropage"]["optimizer_sees"]
    sees = _known(optimizer, tried=in_parts) if named is None else Sees(named)
    if in_parts:
        _check_in_parts(_name_of(optimizer), sees, config)
    return lambda group: sees != Sees.ELEMENTS


def _check_in_parts(name: str, sees: Sees | None, config: _C.Config) -> None:
    if sees == Sees.MODEL:
        raise ConfigError(
            f"the optimizer {name} sums over all parameters of the model in its step, and at stage {config.stage} a rank has only those that it "
            'owns: use stage 0, or another optimizer. If it does not, write "zeropage": {"optimizer_sees": "parameters"} or "elements"'
        )
    if sees is None and not config.allow_untested_optimizer:
        raise ConfigError(
            f"the optimizer is a {name}; it is not known on which data its step depends, and at stage {config.stage} a rank has only a part of the "
            'model: write "zeropage": {"optimizer_sees": "elements"} if it treats every element alike, or "parameters" if it needs norms, shapes '
            'or sums of one parameter at a time (so does "zero_allow_untested_optimizer": true); if it sums over several, "model", use stage 0'
        )


def _known(optimizer: torch.optim.Optimizer, tried: bool) -> Sees | None:
    kind = type(optimizer)
    known = _OF_CLASS.get(f"{kind.__module__.partition('.')[0]}.{kind.__name__}")
    if known == Sees.ELEMENTS or not tried:
        return known
    if any(base.__name__ in _OF_MODEL for base in kind.__mro__) or sums_over_model(optimizer):
        return Sees.MODEL
    return known


def sums_over_model(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the update of one parameter depends on the gradients of others. This is tried with a copy of the object
    on small parameters.

    Cost: milliseconds. Also False if a copy cannot be tried.
    """
    try:
        with _one_trial, warnings.catch_warnings(), torch.compiler.set_stance("force_eager"):
            warnings.simplefilter("ignore")
            return not all(
                torch.equal(one, other)
                for one, other in zip(_tried(optimizer, 1.0), _tried(optimizer, 100.0), strict=True)
            )
    except Exception:  # any error of a class that cannot be copied
        return False


def _tried(optimizer: torch.optim.Optimizer, others: float) -> Iterator[torch.Tensor]:
    """Values of one small parameter after each of some steps, in which the gradients of the others are multiplied by
    `others`."""
    small, groups = {}, []
    for group in optimizer.param_groups:
        shapes = [tuple(min(extent, _LARGEST_EXTENT) for extent in p.shape) for p in group["params"][:2]] * 2
        groups.append([torch.nn.Parameter(_random(shape, index, 0)) for index, shape in enumerate(shapes)])
        small.update({id(p): (groups[-1] or [None])[0] for p in group["params"]})
    copied = _copy_on(optimizer, small, groups)
    step_of = type(optimizer).step
    step_of = (
        step_of.__wrapped__ if getattr(step_of, "hooked", False) else step_of
    )  # the program's hooks must not run here
    parameters = [p for group in groups for p in group]
    for step in range(1, _TRIED_STEPS + 1):
        for index, parameter in enumerate(parameters):
            parameter.grad = _random(parameter.shape, index, step).mul_(others if index > 0 else 1.0)
        step_of(copied)
        yield parameters[0].detach().clone()


def _random(shape: tuple[int, ...], index: int, step: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1000 * step + index))


def _copy_on(
    optimizer: torch.optim.Optimizer, small: dict[int, Any], groups: list[list[torch.nn.Parameter]]
) -> torch.optim.Optimizer:
    """A copy of the object with other parameters, without state. Its own pickling is not used, because it keeps only
    groups and state."""
    memo: dict[int, Any] = dict(small)
    memo[id(optimizer.state)] = defaultdict(dict)
    memo.update(
        {id(value): value for value in vars(optimizer).values() if isinstance(value, torch.nn.Module)}
    )  # a model is not copied
    copied = object.__new__(type(optimizer))
    memo[id(optimizer)] = copied
    attributes = {
        name: value for name, value in vars(optimizer).items() if name != "step" and not name.startswith("_optimizer_")
    }
    copied.__dict__.update(copy.deepcopy(attributes, memo))
    for group, parameters in zip(copied.param_groups, groups, strict=True):
        group["params"] = parameters
    return copied


def _name_of(optimizer: torch.optim.Optimizer) -> str:
    return f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"
