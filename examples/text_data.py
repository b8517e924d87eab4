"""Text available on every machine: the sources of Python's standard library, as bytes."""

import sysconfig
from pathlib import Path

import torch
from torch.utils.data import Dataset


class LibraryText(Dataset):
    """Item i: bytes [i * context, (i + 1) * context] of the text, int64 [context + 1]."""

    def __init__(self, context: int):
        sources = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
        text = b"".join(path.read_bytes() for path in sources)
        self._bytes = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        self._context = context

    def __len__(self) -> int:
        return (len(self._bytes) - 1) // self._context

    def __getitem__(self, index: int) -> torch.Tensor:
        start = index * self._context
        return self._bytes[start : start + self._context + 1].long()
