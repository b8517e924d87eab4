"""The table from names in modules of DeepSpeed to objects of `zeropage`, and the importer that makes these modules.

A line of TABLE: the module's name, the modules of `zeropage` in which its names are searched, in order, and names that
are in other modules.
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

_ZERO = ("zero", "compat.zero_names", "compat.not_built")
_OPTIMIZER = "optimizer:ZeropageOptimizer"

# module without "deepspeed." -> (modules of zeropage, {name: "module:name"})
TABLE: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "": (
        ("", "compat.zero_names", "compat.not_built"),
        {
            "DeepSpeedOptimizer": _OPTIMIZER,
            "OnDevice": "compat.on_device:OnDevice",
            "__git_branch__": "compat.versions:git_branch",
            "__git_hash__": "compat.versions:git_hash",
            "__version_major__": "compat.versions:version_major",
            "__version_minor__": "compat.versions:version_minor",
            "__version_patch__": "compat.versions:version_patch",
            "dist": "comm:",
            "log_dist": "utils:log_dist",
            "logger": "utils:logger",
        },
    ),
    "accelerator": (("compat.accelerator",), {}),
    "accelerator.abstract_accelerator": (("compat.accelerator",), {}),
    "accelerator.cpu_accelerator": (("compat.accelerator",), {"CPU_Accelerator": "compat.accelerator:Accelerator"}),
    "accelerator.cuda_accelerator": (("compat.accelerator",), {"CUDA_Accelerator": "compat.accelerator:Accelerator"}),
    "accelerator.real_accelerator": (("compat.accelerator",), {}),
    "checkpoint": ((), {}),
    "checkpoint.utils": (("compat.clone_tensors",), {}),
    "checkpointing": (("checkpointing",), {}),
    "comm": (("comm",), {}),
    "comm.comm": (("comm",), {}),
    "launcher": ((), {}),
    "launcher.runner": (("compat.launcher_names",), {}),
    "monitor": ((), {}),
    "monitor.config": (("compat.monitor_names",), {}),
    "monitor.csv_monitor": (("compat.monitor_names",), {}),
    "monitor.monitor": (("compat.monitor_names",), {}),
    "monitor.tensorboard": (("compat.monitor_names",), {}),
    "monitor.wandb": (("compat.monitor_names",), {}),
    "moe": ((), {}),
    "moe.layer": (("compat.not_built",), {}),
    "moe.utils": (("compat.not_built",), {}),
    "constants": (("compat.constants",), {}),
    "git_version_info": (("compat.versions",), {}),
    "ops": ((), {"__compatible_ops__": "compat.op_builder:compatible_ops"}),
    "ops.adagrad": (("ops",), {}),
    "ops.adam": (("ops",), {}),
    "ops.lamb": (("ops",), {}),
    "ops.lion": (("ops",), {}),
    "ops.aio": (("compat.op_builder",), {}),
    "ops.op_builder": (("compat.op_builder",), {}),
    "ops.op_builder.all_ops": (("compat.op_builder",), {}),
    "pipe": (("compat.not_built",), {}),
    "profiling": ((), {}),
    "profiling.flops_profiler": (("compat.flops_names",), {}),
    "profiling.flops_profiler.profiler": (("compat.flops_names",), {}),
    "runtime": ((), {"DeepSpeedOptimizer": _OPTIMIZER, "ZeROOptimizer": _OPTIMIZER}),
    "runtime.activation_checkpointing": ((), {}),
    "runtime.activation_checkpointing.checkpointing": (("checkpointing",), {}),
    "runtime.base_optimizer": ((), {"DeepSpeedOptimizer": _OPTIMIZER, "ZeROOptimizer": _OPTIMIZER}),
    "runtime.checkpoint_engine": (("compat.not_built",), {}),
    "runtime.checkpoint_engine.checkpoint_engine": (("compat.not_built",), {}),
    "runtime.checkpoint_engine.torch_checkpoint_engine": (("compat.not_built",), {}),
    "runtime.config": (("compat.zero_names", "compat.constants"), {}),
    "runtime.config_utils": (("compat.zero_names",), {}),
    "runtime.constants": (("compat.constants",), {}),
    "runtime.eigenvalue": (("compat.not_built",), {}),
    "runtime.bf16_optimizer": ((), {"BF16_Optimizer": _OPTIMIZER}),
    "runtime.fp16": ((), {}),
    "runtime.fp16.fused_optimizer": ((), {"FP16_Optimizer": _OPTIMIZER}),
    "runtime.fp16.loss_scaler": (("compat.constants", "compat.not_built"), {}),
    "runtime.fp16.unfused_optimizer": ((), {"FP16_UnfusedOptimizer": _OPTIMIZER}),
    "runtime.dataloader": (("utils",), {}),
    "runtime.engine": (("engine",), {}),
    "runtime.hybrid_engine": (("compat.not_built",), {}),
    "runtime.lr_schedules": (("lr_schedules", "compat.schedule_names", "compat.not_built"), {}),
    "runtime.pipe": (("compat.not_built",), {}),
    "runtime.pipe.engine": (("compat.not_built",), {}),
    "runtime.pipe.module": (("compat.not_built",), {}),
    "runtime.pipe.topology": (("compat.not_built",), {}),
    "runtime.sequence_parallel": ((), {}),
    "runtime.sequence_parallel.ulysses_sp": (("compat.not_built",), {}),
    "runtime.progressive_layer_drop": (("compat.not_built",), {}),
    "runtime.swap_tensor": (("compat.constants",), {}),
    "runtime.swap_tensor.constants": (("compat.constants",), {}),
    "runtime.swap_tensor.utils": (("compat.constants",), {}),
    "runtime.utils": (("runtime.utils", "runtime.gradient_norms", "runtime.partition", "compat.versions"), {}),
    "runtime.zero": (_ZERO, {}),
    "runtime.zero.config": (("compat.zero_names",), {}),
    "runtime.zero.offload_config": (("runtime.zero.offload_config",), {}),
    "runtime.zero.partition_parameters": (_ZERO, {}),
    "runtime.zero.parameter_offload": (
        ("compat.parameter_offload",),
        {"DeepSpeedZeRoOffload": "compat.parameter_offload:ParameterOffload"},
    ),
    "runtime.zero.stage3": (("runtime.zero.stage3",), {"DeepSpeedZeroOptimizer_Stage3": _OPTIMIZER}),
    "runtime.zero.stage_1_and_2": (("runtime.zero.stage_1_and_2",), {"DeepSpeedZeroOptimizer": _OPTIMIZER}),
    "runtime.zero.utils": (("compat.zero_names",), {}),
    "utils": (("utils", "compat.leaf_modules"), {"OnDevice": "compat.on_device:OnDevice"}),
    "utils.groups": (("compat.groups",), {}),
    "utils.logging": (("utils",), {}),
    "utils.nvtx": (("utils",), {}),
    "utils.tensor_fragment": (("utils",), {}),
    "utils.timer": (("utils.timer",), {}),
    "utils.torch": (("compat.versions",), {}),
    "utils.zero_to_fp32": (("utils.zero_to_fp32",), {}),
    "zero": (_ZERO, {}),
}


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Makes the modules of TABLE when they are imported."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if not fullname.startswith("deepspeed.") or _short(fullname) not in TABLE:
            return None
        spec = importlib.machinery.ModuleSpec(fullname, self, origin=__file__)
        spec.submodule_search_locations = []  # all are packages, because any may contain modules
        return spec

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        module.__doc__ = f"Names of `{module.__name__}` for programs that import them; `zeropage` defines them."
        module.__dict__["__getattr__"] = lookup(module.__name__)


def lookup(fullname: str) -> Callable[[str], Any]:
    """The __getattr__ of a module: finds its modules, then its names. The result is kept in the module."""
    places, elsewhere = TABLE[_short(fullname)]

    def find(name: str) -> Any:
        if _short(f"{fullname}.{name}") in TABLE:
            return importlib.import_module(f"{fullname}.{name}")
        if name in elsewhere:
            place, _, attribute = elsewhere[name].partition(":")
            module = _zeropage(place)
            return getattr(module, attribute) if attribute else module
        if name.startswith("__"):
            raise AttributeError(f"module {fullname!r} has no attribute {name!r}")
        for place in places:
            try:
                return getattr(_zeropage(place), name)
            except AttributeError:
                continue
        raise AttributeError(
            f"module {fullname!r} has no attribute {name!r}: this `deepspeed` is zeropage's, which has no such name"
        )

    def find_and_keep(name: str) -> Any:
        found = find(name)
        setattr(sys.modules[fullname], name, found)
        return found

    return find_and_keep


def _zeropage(place: str) -> ModuleType:
    return importlib.import_module(f"zeropage.{place}" if place else "zeropage")


def _short(fullname: str) -> str:
    return fullname.removeprefix("deepspeed").removeprefix(".")
