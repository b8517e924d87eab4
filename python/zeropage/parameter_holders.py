"""Records which engine holds a parameter, and handles parameters when their engine ends.

1. An engine registers the parameters that it has taken. At stage 3 the module then keeps the engine's C++ side, because
   it has the shards.
2. An engine that is destroyed or garbage-collected frees everything except the parameters. At stage 3 they stay
   sharded, and operators gather them as before.
3. A later engine first ends all engines that hold any of its parameters, then takes the parameters over. A C++ side
   whose parameters are all taken is freed.
"""

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from . import _C
from .torch_paths import pass_by_mark

if TYPE_CHECKING:
    from .engine import ZeropageEngine


class KeptParameters:
    """An attribute of a module: the C++ side of the engine that has the shards of its parameters. Copies of the module
    have whole parameters, and do not have it."""

    NAME = "_zeropage_kept_parameters"

    def __init__(self, core: _C.Engine | None = None):
        self.core = core

    def __deepcopy__(self, memo: Any) -> "KeptParameters":
        return KeptParameters()

    def __reduce__(self) -> Any:
        return KeptParameters, ()


@dataclass
class _Holder:
    core: weakref.ref  # the engine's C++ side
    engine: weakref.ref
    kept: weakref.ref | None  # the module's KeptParameters; None below stage 3
    parameters: dict[
        int, tuple[int, torch.Tensor]
    ]  # by their ids: (index in the engine, the object itself, so that no other object gets the id)
    stage: int


_holders: dict[int, _Holder] = {}  # by the id of the C++ side
_swap_tensors = torch.utils.swap_tensors


def register_parameters(engine: "ZeropageEngine", core: _C.Engine, parameters: list[torch.Tensor]) -> None:
    """Records that an engine holds these parameters, in the order of its C++ side."""
    key = id(core)
    held = {id(parameter): (index, parameter) for index, parameter in enumerate(parameters)}
    if key in _holders:
        _holders[key].parameters = held
        return
    _take_from_holders(held)
    stage = engine.zero_optimization_stage()
    kept = None
    if stage == 3:
        engine.module.__dict__[KeptParameters.NAME] = in_module = KeptParameters(core)
        kept = weakref.ref(in_module)
    _holders[key] = _Holder(
        weakref.ref(core, lambda _: _holders.pop(key, None)), weakref.ref(engine), kept, held, stage
    )
    torch.utils.swap_tensors = swap_tensors
    pass_by_mark(held_parameters)


def held_parameters() -> list[torch.Tensor]:
    """Of all engines."""
    return [parameter for holder in list(_holders.values()) for _, parameter in holder.parameters.values()]


def end_holders(parameters: Iterable[torch.Tensor]) -> None:
    """Ends the engines that hold any of these parameters. The parameters keep their values. Raises the error of a
    running save."""
    wanted = {id(parameter) for parameter in parameters}
    for holder in list(_holders.values()):
        engine = holder.engine()
        if engine is not None and not wanted.isdisjoint(holder.parameters):
            engine.end("this engine was ended when its model was given to a later engine; use the later one")


def consolidate(parameters: Iterable[torch.Tensor]) -> None:
    """Makes parameters whose engine has ended whole plain tensors on every rank. Collective at stage 3."""
    parameters = list(parameters)
    for parameter in parameters:
        parameter.data = parameter.detach().clone()
    _take_from_holders({id(parameter) for parameter in parameters})


def _take_from_holders(taken: Iterable[int]) -> None:
    """Removes parameters, by their ids. Holders without parameters are freed."""
    taken = set(taken)
    for holder in list(_holders.values()):
        if taken.isdisjoint(holder.parameters):
            continue  # it may be of another rank, which is a thread of this process
        holder.parameters = {name: place for name, place in holder.parameters.items() if name not in taken}
        kept = None if holder.parameters or holder.kept is None else holder.kept()
        if kept is not None:
            kept.core = None


def _place_of(parameter: torch.Tensor) -> tuple[_C.Engine, int, int] | None:
    """The engine that holds a parameter, the parameter's index there, and the engine's stage."""
    for holder in list(_holders.values()):
        core = holder.core()
        if core is not None and id(parameter) in holder.parameters:
            return core, holder.parameters[id(parameter)][0], holder.stage
    return None


def engine_of(parameter: torch.Tensor) -> _C.Engine | None:
    """The C++ side of the engine that holds a parameter; it may have ended."""
    place = _place_of(parameter)
    return None if place is None else place[0]


def wait_for_device_of(parameters: Iterable[torch.Tensor], what: str) -> None:
    """Before the host reads values: waits for the device as the first engine that holds one of these parameters does,
    so that a device that does not answer is an error. Without an engine it does nothing."""
    for parameter in parameters:
        for holder in list(_holders.values()):
            core, engine = holder.core(), holder.engine()
            if core is not None and id(parameter) in holder.parameters and engine is not None and not engine.has_ended:
                core.wait_for_device(what)
                return


def is_sharded(parameter: torch.Tensor) -> bool:
    """Whether an engine of stage 3 or an Init scope holds this parameter, including small ones, which stay whole."""
    if _C.is_deferred(parameter):
        return True
    place = _place_of(parameter)
    return place is not None and place[2] == 3


def swap_tensors(t1: torch.Tensor, t2: torch.Tensor) -> None:
    """Replaces `torch.utils.swap_tensors` when there is an engine: the engine releases the parameter during the swap,
    and then takes over its new values. For a parameter of an engine this gathers the whole parameter, on every rank."""
    places = [(tensor, _place_of(tensor)) for tensor in (t1, t2)]
    held = [(tensor, place) for tensor, place in places if place is not None]
    for _, (core, index, _) in held:
        core.drop_tensor(index)
    try:
        _swap_tensors(t1, t2)
    finally:
        for tensor, (core, index, _) in held:
            core.set_tensor(index, tensor)


# The engine's C++ side -> its optimizer, while both exist.
_optimizer_of_engine: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def register_optimizer(core: _C.Engine, optimizer: Any) -> None:
    """Records the optimizer of an engine, without keeping either alive."""
    _optimizer_of_engine[core] = weakref.ref(optimizer)


def engine_and_optimizer(parameter: torch.Tensor) -> tuple[_C.Engine | None, Any]:
    """The C++ side of the engine that holds a parameter, and its optimizer, or None."""
    core = engine_of(parameter)
    reference = None if core is None else _optimizer_of_engine.get(core)
    return core, None if reference is None else reference()
