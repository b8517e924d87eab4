"""`deepspeed.zero`: explicit access to parameters, and the names of what is not needed here.

Operators gather the parameters that they touch by themselves. `GatheredParameters` is for code that goes round
the dispatcher (raw pointers, `.numpy()`), and to make an edit by one rank the edit of all.
"""

from collections.abc import Iterable

import torch
from torch.utils.weak import WeakIdKeyDictionary

from . import _C
from .errors import UsageError

_engine_of_parameter: WeakIdKeyDictionary = WeakIdKeyDictionary()  # parameter -> engine, as long as both live


def register_parameters(parameters: Iterable[torch.Tensor], engine_reference) -> None:
    """Says which engine (a weak reference to its C++ side) holds these parameters."""
    for parameter in parameters:
        _engine_of_parameter[parameter] = engine_reference


def _engine_of(parameter: torch.Tensor) -> _C.Engine | None:
    reference = _engine_of_parameter.get(parameter)
    return reference() if reference is not None else None


class GatheredParameters:
    """While inside, the parameters are whole and stay so on every rank that has entered.

    params: a parameter or an iterable of them; those that no engine holds are left alone.
    modifier_rank: on leaving every rank takes this rank's values (collective); None: what each rank wrote stands, which
    must be the same everywhere.
    fwd_module: accepted for compatibility; nothing needs it.
    """

    def __init__(
        self,
        params: torch.Tensor | Iterable[torch.Tensor],
        modifier_rank: int | None = None,
        fwd_module: torch.nn.Module | None = None,
        enabled: bool = True,
    ):
        params = [params] if isinstance(params, torch.Tensor) else list(params)
        wrong = next((p for p in params if not isinstance(p, torch.Tensor)), None)
        if wrong is not None:
            raise UsageError(f"GatheredParameters takes parameters, got {type(wrong).__name__}; for a module pass `module.parameters()`")
        self._params = params if enabled else []
        self._modifier_rank = -1 if modifier_rank is None else modifier_rank
        self._tickets: list[tuple[_C.Engine, int]] = []

    def __enter__(self) -> None:
        by_engine: dict[_C.Engine, dict[int, torch.Tensor]] = {}
        for parameter in self._params:
            engine = _engine_of(parameter)
            if engine is not None:
                by_engine.setdefault(engine, {})[id(parameter)] = parameter
        for engine, parameters in by_engine.items():
            self._tickets.append((engine, engine.gather(list(parameters.values()))))

    def __exit__(self, *exception) -> None:
        while self._tickets:
            engine, ticket = self._tickets.pop()
            # After an error on this rank the others may not come to a broadcast.
            engine.release(ticket, self._modifier_rank if exception[0] is None else -1)


gathered = GatheredParameters


def register_external_parameter(module: torch.nn.Module, parameter: torch.nn.Parameter) -> None:
    """Does nothing: an operator that touches a parameter gathers it, whichever module the code stands in."""


def unregister_external_parameter(module: torch.nn.Module, parameter: torch.nn.Parameter) -> None:
    """Does nothing, as `register_external_parameter`."""
