"""`tensor.data = data` for every kind of device."""

import torch

# torch treats tensors of these devices as one kind: data of one may be assigned to tensors of another.
_INTERCHANGEABLE = {"cpu", "cuda", "mps", "xpu", "hpu", "mtia"}


def assign_data(tensor: torch.Tensor, data: torch.Tensor) -> None:
    """The tensor remains the same Python object. If torch does not allow data of this device in it, for example of an
    accelerator of another vendor, it becomes a Parameter on that device."""
    if tensor.device.type == data.device.type or {tensor.device.type, data.device.type} <= _INTERCHANGEABLE:
        tensor.data = data
    else:
        torch.utils.swap_tensors(tensor, torch.nn.Parameter(data, tensor.requires_grad))
