"""`OnDevice`: a scope in which models are made on a device, in a type."""

import contextlib

import torch


class OnDevice:
    """Inside the scope new tensors are made on `device`, floating-point ones in `dtype`. "meta": with shapes but
    without values.

    A model on the meta device gets values by `model.to_empty(device="cpu")` and loading before `initialize`.
    """

    def __init__(self, dtype: torch.dtype, device: str = "meta", enabled: bool = True):
        self._dtype = dtype
        self._device = device
        self._enabled = enabled
        self._inside = contextlib.ExitStack()

    def __enter__(self) -> "OnDevice":
        if self._enabled:
            self._inside.callback(torch.set_default_dtype, torch.get_default_dtype())
            torch.set_default_dtype(self._dtype)
            self._inside.enter_context(torch.device(self._device))
        return self

    def __exit__(self, *exception) -> None:
        self._inside.close()
