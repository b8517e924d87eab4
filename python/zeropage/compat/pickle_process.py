"""Reads files of torch.save in a separate process, so that a malicious pickle cannot harm this one.

1. The process reads requests, lines of JSON, and answers each with a line of JSON. The answer to `read` is followed by
   the requested bytes.
2. {"open": path}: torch.load with weights_only=True, which builds tensors and plain values and runs nothing. Every
   other class or function in the file is replaced by a class of this module that only stores its arguments. The answer
   is the value, encoded as in `checkpoint_values`; tensors as their number, type and shape.
3. {"read": [tensor, begin, end]}: elements of the flattened tensor. Files are mapped, so only the requested elements
   are read.
4. It cannot write files, and it ends when its input ends.
"""

import json
import resource
import select
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ..checkpoint_values import Tensors, decode, encode
from ..errors import CheckpointError

FOREIGN = "foreign class"
_ANSWER_LIMIT_BYTES = 256 << 20
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of an opened file that has not been read yet."""

    reader: "PickleProcess"
    number: int
    dtype: torch.dtype
    shape: torch.Size

    def numel(self) -> int:
        return self.shape.numel()

    def read(self, begin: int = 0, end: int | None = None) -> torch.Tensor:
        """Elements [begin, end) of the flattened tensor. Raises CheckpointError."""
        return self.reader.read(self, begin, self.numel() if end is None else end)


class PickleProcess:
    """The process, for its parent. A context manager."""

    def __init__(self, timeout_s: float = 600.0):
        """timeout_s: the longest time for one answer."""
        self._timeout_s = timeout_s
        command = [sys.executable, "-P", "-m", __name__]  # no module is imported from the current folder
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        self._requests: Any = self._process.stdin
        self._answers: Any = self._process.stdout

    def __enter__(self) -> "PickleProcess":
        return self

    def __exit__(self, *_: Any) -> None:
        self._process.kill()
        self._process.communicate()

    def open(self, path: Path) -> Any:
        """The value in the file: plain values, `StoredTensor`s, and for objects of other classes a dict with the key
        `FOREIGN`.

        Raises CheckpointError for a file that torch refuses, and when the process dies.
        """
        answer = self._ask({"open": str(path)}, f"reading {path}")
        described = answer["tensors"]

        def stored(name: str) -> StoredTensor:
            number, dtype, shape = described[name]
            return StoredTensor(self, number, getattr(torch, dtype), torch.Size(shape))

        return decode(answer["value"], stored)

    def read(self, tensor: StoredTensor, begin: int, end: int) -> torch.Tensor:
        out = torch.empty(end - begin, dtype=tensor.dtype)
        doing = f"reading a tensor of {list(tensor.shape)}"
        self._ask({"read": [tensor.number, begin, end]}, doing)
        if out.numel() > 0:
            self._fill(memoryview(out.view(torch.uint8).numpy()), doing)
        return out

    def _ask(self, request: dict[str, Any], doing: str) -> Any:
        try:
            self._requests.write(json.dumps(request).encode() + b"\n")
        except BrokenPipeError:
            raise self._died(doing) from None
        size = bytearray(8)
        self._fill(memoryview(size), doing)
        length = int.from_bytes(size, "little")
        if length > _ANSWER_LIMIT_BYTES:
            raise CheckpointError(
                f"{doing}: the description has {length} bytes; expected at most {_ANSWER_LIMIT_BYTES}"
            )
        text = bytearray(length)
        self._fill(memoryview(text), doing)
        answer = json.loads(text)
        if "error" in answer:
            raise CheckpointError(f"{doing}: {answer['error']}")
        return answer

    def _fill(self, out: memoryview, doing: str) -> None:
        deadline = time.monotonic() + self._timeout_s
        done = 0
        while done < len(out):
            ready, _, _ = select.select([self._answers], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise CheckpointError(f"{doing}: no answer for {self._timeout_s:g} s")
            got = self._answers.readinto(out[done : done + _PIECE_BYTES])
            if not got:
                raise self._died(doing)
            done += got

    def _died(self, doing: str) -> CheckpointError:
        return CheckpointError(f"{doing}: the process that reads the file ended with code {self._process.wait()}")


class _Foreign:
    """Replaces a class or function that a pickle names: stores its arguments and does nothing."""

    def __new__(cls, *arguments: Any) -> "_Foreign":
        made = super().__new__(cls)
        made.__dict__["arguments"] = arguments
        return made

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        self.__dict__["state"] = state


def _plain(value: Any) -> Any:
    """The value, with a description of everything that `encode` does not support."""
    if isinstance(value, torch.Tensor):
        if value.layout != torch.strided or value.is_quantized:
            return {FOREIGN: str(value.layout)}
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise CheckpointError(
                f"a tensor of {list(value.shape)} in {value.untyped_storage().nbytes()} bytes repeats its elements"
            )
        return value.detach()
    if isinstance(value, _Foreign):
        return {FOREIGN: type(value).__name__} | {key: _plain(held) for key, held in value.__dict__.items()}
    if isinstance(value, dict):
        return {
            (key if isinstance(key, (str, int, float, bool)) else str(key)): _plain(held) for key, held in value.items()
        }
    if isinstance(value, (list, tuple)):
        return type(value)(map(_plain, value)) if type(value) in (list, tuple) else tuple(map(_plain, value))
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return {FOREIGN: type(value).__qualname__}


def _open(path: str, tensors: list[torch.Tensor]) -> dict[str, Any]:
    names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    stand_ins: list[Any] = [(type(name, (_Foreign,), {}), name) for name in names]
    with torch.serialization.safe_globals(stand_ins):
        value = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    found: Tensors = {}
    encoded = encode(_plain(value), found, path)
    described = {}
    for name, tensor in found.items():
        described[name] = [len(tensors), str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
        tensors.append(tensor)
    return {"value": encoded, "tensors": described}


def _reason(error: Exception) -> str:
    """The message without the paragraphs in which torch recommends to load the file without protection."""
    paragraphs = (paragraph.strip() for paragraph in str(error).split("\n\n"))
    return " ".join(text for text in paragraphs if text and "weights_only" not in text)


def _answer(out: BinaryIO, answer: dict[str, Any]) -> None:
    text = json.dumps(answer).encode()
    out.write(len(text).to_bytes(8, "little") + text)


def _serve(requests: BinaryIO, out: BinaryIO) -> None:
    tensors: list[torch.Tensor] = []
    for line in requests:
        request = json.loads(line)
        try:
            if "open" in request:
                _answer(out, _open(request["open"], tensors))
            else:
                number, begin, end = request["read"]
                values = tensors[number].reshape(-1)[begin:end].contiguous()
                _answer(out, {})
                if values.numel() > 0:
                    out.write(memoryview(values.view(torch.uint8).numpy()))
        except Exception as error:  # any error that torch raises for a malformed file
            _answer(out, {"error": f"{type(error).__name__}: {_reason(error)}"})
        out.flush()


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _serve(sys.stdin.buffer, sys.stdout.buffer)
