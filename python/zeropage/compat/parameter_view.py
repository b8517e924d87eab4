"""Attributes of parameters at stage 3 with DeepSpeed's names: ds_id, ds_shape, ds_numel, ds_status, ds_persist,
ds_tensor, all_gather(), partition(), and a few that are always empty.

They are properties of torch.nn.Parameter. Their values are from the engine or the zero.Init scope that holds the
parameter now. Other parameters do not have them: hasattr(parameter, "ds_id") is False.
"""

import itertools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.weak import WeakIdKeyDictionary

from .. import _C
from ..parameter_holders import engine_of, is_sharded

if TYPE_CHECKING:
    from .zero_names import ZeroParamStatus

_ids: WeakIdKeyDictionary = WeakIdKeyDictionary()
_next_id = itertools.count()
_gathered: WeakIdKeyDictionary = (
    WeakIdKeyDictionary()
)  # parameter -> the GatheredParameters that all_gather() has entered


def install() -> None:
    """Adds the properties to torch.nn.Parameter. Later calls do nothing."""
    for name, answer in _ANSWERS.items():
        setattr(torch.nn.Parameter, name, property(_of_paged(name, answer)))


def _of_paged(name: str, answer: Callable[[torch.Tensor], Any]) -> Callable[[torch.Tensor], Any]:
    def read(parameter: torch.Tensor) -> Any:
        if not is_sharded(parameter):
            raise AttributeError(
                f"{type(parameter).__name__!r} object has no attribute {name!r}: no engine of stage 3 and no zero.Init holds it"
            )
        return answer(parameter)

    return read


def _id(parameter: torch.Tensor) -> int:
    if parameter not in _ids:
        _ids[parameter] = next(_next_id)
    return _ids[parameter]


def status_of(parameter: torch.Tensor) -> "ZeroParamStatus":
    """AVAILABLE: the values are in this rank's memory now. Otherwise operators gather them."""
    from .zero_names import ZeroParamStatus

    try:
        present = parameter.untyped_storage().data_ptr() != 0 or parameter.numel() == 0
    except RuntimeError:  # the guard of an absent parameter
        present = False
    return ZeroParamStatus.AVAILABLE if present else ZeroParamStatus.NOT_AVAILABLE


def _all_gather(parameter: torch.Tensor) -> Callable[..., None]:
    def all_gather(param_list: Iterable[torch.Tensor] | None = None, async_op: bool = False) -> None:
        """Makes the parameter, or those of the list, whole until `partition`; they are whole on return."""
        from .. import zero

        for each in [parameter] if param_list is None else list(param_list):
            if each not in _gathered:
                _gathered[each] = zero.GatheredParameters(each)
                _gathered[each].__enter__()

    return all_gather


def _partition(parameter: torch.Tensor) -> Callable[..., None]:
    def partition(param_list: Iterable[torch.Tensor] | None = None, has_been_updated: bool = False) -> None:
        """Ends `all_gather`. Values that this rank wrote are kept, as at the end of GatheredParameters without a
        modifier rank."""
        for each in [parameter] if param_list is None else list(param_list):
            if (held := _gathered.pop(each, None)) is not None:
                held.__exit__(None, None, None)

    return partition


def _tensor(parameter: torch.Tensor) -> torch.Tensor:
    """A copy of the elements that this rank holds, flat, in the parameter's type. Ranks may hold different numbers of
    them. Not available before `initialize`. Gathers a frozen parameter."""
    core = engine_of(parameter)
    if core is None:
        raise AttributeError(
            "ds_tensor: a parameter in zero.Init has no fixed part on this rank before zeropage.initialize"
        )
    piece = core.local_value(parameter, _C.ValueKind.PARAMETER)
    if piece is None:
        piece = core.piece_of_value(parameter, parameter.detach())
    part = piece.to(parameter.dtype)
    part.ds_numel = part.numel()
    return part


_ANSWERS: dict[str, Callable[[torch.Tensor], Any]] = {
    "ds_id": _id,
    "ds_shape": lambda parameter: parameter.shape,
    "ds_numel": lambda parameter: parameter.numel(),
    "ds_status": status_of,
    "ds_persist": lambda parameter: not _C.is_paged(parameter),
    "ds_tensor": _tensor,
    "ds_active_sub_modules": lambda parameter: set(),
    "all_gather": _all_gather,
    "partition": _partition,
}
