"""`tensor.data = data` for every kind of device."""

import torch

# torch takes tensors of these for one kind, whose data may be assigned to each other's tensors.
_INTERCHANGEABLE = {"cpu", "cuda", "mps", "xpu", "hpu", "mtia"}


def assign_data(tensor: torch.Tensor, data: torch.Tensor) -> None:
    """The tensor remains the same Python object; with data of a device that torch does not let it have, say of an
    accelerator of another vendor, it becomes a Parameter of that device."""
    if tensor.device.type == data.device.type or {tensor.device.type, data.device.type} <= _INTERCHANGEABLE:
        tensor.data = data
    else:
        torch.utils.swap_tensors(tensor, torch.nn.Parameter(data, tensor.requires_grad))
