"""`cpu_checkpointing`: inputs of checkpointed functions are kept in host memory from the forward until shortly before
the backward needs them.

1. When a checkpoint saves an input, a stream of its own copies it to page-locked memory; the device's memory is free
   when the copy has ended.
2. When the backward needs an input, it is copied back on the same stream, and so is the one that was saved before it,
   which the backward needs next. The backward's stream waits for the copy; the host does not.
3. On a CPU the inputs are already in host memory.
"""

import functools
import weakref
from contextlib import AbstractContextManager

import torch


class _Saved:
    """An input on the host, perhaps being copied back."""

    def __init__(self, host: torch.Tensor, device: torch.device):
        self.host, self.device = host, device
        self.returned: torch.Tensor | None = None
        self.event: torch.Event | None = None  # of the copy back


class _Copies:
    """For one device: the stream of the copies, and the saved inputs, in order."""

    def __init__(self, device: torch.device):
        self._stream = torch.Stream(device=device)
        self._order: list[weakref.ref[_Saved]] = []

    def save(self, tensor: torch.Tensor) -> _Saved:
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        self._stream.wait_stream(torch.accelerator.current_stream(tensor.device))
        with self._stream:
            host.copy_(tensor, non_blocking=True)
        tensor.record_stream(self._stream)
        saved = _Saved(host, tensor.device)
        self._order.append(weakref.ref(saved))
        return saved

    def fetch(self, saved: _Saved) -> torch.Tensor:
        """Returns the input, ready on the current stream."""
        self._begin(saved)
        while self._order and self._order[-1]() in (None, saved):
            self._order.pop()
        before = self._order[-1]() if self._order else None
        if before is not None:
            self._begin(before)
        stream = torch.accelerator.current_stream(saved.device)
        stream.wait_event(saved.event)
        tensor, saved.returned = saved.returned, None  # a second backward of a kept graph fetches again
        assert tensor is not None  # _begin has made it
        tensor.record_stream(stream)
        return tensor

    def _begin(self, saved: _Saved) -> None:
        if saved.returned is not None:
            return
        with self._stream:
            saved.returned = saved.host.to(saved.device, non_blocking=True)
        saved.event = self._stream.record_event()


@functools.cache
def _copies_of(device: torch.device) -> _Copies:
    return _Copies(device)


def _to_host(tensor: torch.Tensor) -> torch.Tensor | _Saved:
    return tensor if tensor.device.type == "cpu" else _copies_of(tensor.device).save(tensor)


def _to_device(saved: torch.Tensor | _Saved) -> torch.Tensor:
    return saved if isinstance(saved, torch.Tensor) else _copies_of(saved.device).fetch(saved)


def on_host() -> AbstractContextManager:
    """Inside the scope autograd saves tensors to the host. Cost: two copies over the link, and the tensor in
    page-locked memory."""
    return torch.autograd.graph.saved_tensors_hooks(_to_host, _to_device)
