"""`clone_tensors_for_torch_save`: copies tensors that are parts of larger buffers to memory of their own."""

from typing import Any

import torch


def clone_tensors_for_torch_save(item: Any, device: torch.device | str = "cpu") -> Any:
    """Copies `item` with its dicts, lists and tuples, and clones its tensors to `device`; aliases of one tensor stay
    one.

    A parameter at stages 1 to 3 is a part of its page's buffer, and torch.save would write the whole buffer.
    """
    clones: dict[tuple, torch.Tensor] = {}

    def clone(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            key = (
                value.untyped_storage()._cdata,
                value.storage_offset(),
                tuple(value.shape),
                value.stride(),
                value.dtype,
            )
            if key not in clones:
                clones[key] = value.detach().to(device, copy=True)
            return clones[key]
        if isinstance(value, dict):
            return type(value)((key, clone(each)) for key, each in value.items())
        if isinstance(value, (list, tuple)):
            copies = [clone(each) for each in value]
            return type(value)(*copies) if hasattr(value, "_fields") else type(value)(copies)
        return value

    return clone(item)
