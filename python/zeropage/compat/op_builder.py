"""`deepspeed.ops.op_builder`: builders of extensions. The engine contains the kernels, so a builder builds nothing."""

from typing import Any

from ..errors import UsageError

_ENGINE_HAS = ("CPUAdam", "FusedAdam", "CPUAdagrad", "CPULion", "FusedLion", "FusedLamb", "Utils", "AsyncIO", "GDS")


class OpBuilder:
    """is_compatible: whether the engine does this work itself."""

    NAME = ""
    COMPATIBLE = False

    def is_compatible(self, verbose: bool = False) -> bool:
        return self.COMPATIBLE

    def absolute_name(self) -> str:
        return f"zeropage.{self.NAME}"

    def load(self, verbose: bool = True) -> Any:
        raise UsageError(
            f"there is no extension {self.NAME!r} to load: nothing compiles at run time, and every kernel is in the engine"
        )


class _CompatibleOps(dict):
    """By a builder's NAME: whether the engine does this work itself."""

    def __missing__(self, name: str) -> bool:
        return False


compatible_ops = _CompatibleOps(dict.fromkeys(_ENGINE_HAS, True))


def __getattr__(name: str) -> Any:
    if not name.endswith("Builder") or name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    kind = name.removesuffix("Builder")
    return type(name, (OpBuilder,), {"NAME": kind, "COMPATIBLE": kind in _ENGINE_HAS})
