"""Gathers the parameters of code of torch.compile where the code uses them.

AOTAutograd makes a custom function of every graph. The observer (paging/function_observer.h) would keep all pages of
the graph's inputs resident while it runs. Instead:

  1. Operators are dispatched as always and cause faults for absent pages: all operators in a graph of the backend
     aot_eager, and those for which Inductor generates no code (matrix products, convolutions, attention).
  2. Kernels that Inductor generates read their tensors by address. They are called through `_C.PinnedCall`, which makes
     the pages of one call resident until it is over. The kernels are found by name in the module of the generated code,
     which stays unchanged, and so do its cache, its graph and the time of compiling.
  3. Where these kernels cannot be found (C++ wrappers, kernels that are given plain addresses), the parameters of the
     graph are pinned while it runs. The observer handles functions of other backends.
  4. A CUDA graph reads the addresses with which it was recorded. So graphs of Inductor and of the backend cudagraphs
     that may use sharded parameters run without CUDA graphs.
  5. While torch compiles, the observer is paused, unless a profiler runs.

Torch imports its compiler when it is first used; the hooks are placed then.
"""

import ast
import contextlib
import functools
import importlib.abc
import importlib.machinery
import logging
import re
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from . import _C

_log = logging.getLogger(__name__)
_KERNEL = re.compile(r"^(\w+) = async_compile\.(\w+)\((.*)$", re.MULTILINE)
_KERNELS_END = "async_compile.wait(globals())"

# The files of the wrappers that AOTAutograd and aot_eager put around a graph. They run no operators themselves.
_TORCH = Path(torch.__file__).parent
_WRAPPERS = tuple(
    str(_TORCH / part)
    for part in ("_functorch", "_dynamo/backends/debugging.py", "_dynamo/eval_frame.py", "_dynamo/external_utils.py")
)


def fetch_in_compiled_code(held: Callable[[], Iterable[torch.Tensor]]) -> None:
    """Places the hooks, now or when torch imports its compiler. Later calls do nothing. held: the parameters of all
    engines."""
    _hooks.place(
        {
            "torch._inductor.output_code": functools.partial(_hook_inductor, held=held),
            "torch._functorch._aot_autograd.runtime_wrappers": _hook_autograd,
            "torch._dynamo.callback": _hook_compiling,
            "torch._dynamo.backends.cudagraphs": functools.partial(_hook_cuda_graphs, held=held),
        }
    )


class _WhenImported(importlib.abc.MetaPathFinder):
    """Calls functions with modules directly after their first import."""

    def __init__(self) -> None:
        self._waiting: dict[str, Callable[[types.ModuleType], None]] = {}
        self._placed = False

    def place(self, hooks: dict[str, Callable[[types.ModuleType], None]]) -> None:
        if self._placed:
            return
        self._placed = True
        self._waiting = dict(hooks)
        sys.meta_path.insert(0, self)
        for name in hooks:
            if name in sys.modules:
                self._call(sys.modules[name])

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self._waiting:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_call(module: types.ModuleType) -> None:
            execute(module)
            self._call(module)

        # Of this loader only: every module has its own.
        spec.loader.exec_module = execute_and_call  # type: ignore[method-assign]
        return spec

    def _call(self, module: types.ModuleType) -> None:
        hook = self._waiting.pop(module.__name__, None)
        if hook is not None:
            hook(module)
        if not self._waiting and self in sys.meta_path:
            sys.meta_path.remove(self)


_hooks = _WhenImported()


def _hook_inductor(module: types.ModuleType, held: Callable[[], Iterable[torch.Tensor]]) -> None:
    """`CompiledFxGraph.post_compile` runs for every graph of Inductor, compiled now or read from a cache."""
    graph_class = getattr(module, "CompiledFxGraph", None)
    original = getattr(graph_class, "post_compile", None)
    if original is None:
        _log.debug("torch has no CompiledFxGraph.post_compile: graphs of Inductor keep all their parameters resident")
        return

    @functools.wraps(original)
    def post_compile(graph: Any, *args: Any, **kwargs: Any) -> None:
        obstacle = _pin_in_kernels(graph)
        if "cuda" in getattr(graph, "device_types", ()) and _any_sharded(held):
            wanted = (kwargs.get("graph_kwargs") or args[-1]).get("cudagraphs")
            if wanted:
                wanted.value = False  # of the graph and its backward
                _say_no_cuda_graphs("mode='reduce-overhead' or 'max-autotune'")
        original(graph, *args, **kwargs)
        if obstacle is not None and graph.current_callable is not None:
            _log.debug("a graph of Inductor keeps all its parameters resident while it runs: %s", obstacle)
            written = _flags(getattr(graph, "mutated_input_idxs", ()))
            graph.current_callable = _C.PinnedCall(graph.current_callable, "a compiled graph", written)

    graph_class.post_compile = post_compile  # type: ignore[union-attr]


def _any_sharded(held: Callable[[], Iterable[torch.Tensor]]) -> bool:
    return any(_C.is_paged(parameter) for parameter in held())


def _say_no_cuda_graphs(who: str) -> None:
    _C.log_warn(
        f"torch.compile: no CUDA graphs for this model ({who} asked for them): they need every parameter at one "
        "address, and sharded parameters of stage 3 have none. Use mode='default' or 'max-autotune-no-cudagraphs' of "
        "the backend inductor, or a stage below 3."
    )


def _hook_cuda_graphs(module: types.ModuleType, held: Callable[[], Iterable[torch.Tensor]]) -> None:
    """The backend cudagraphs calls `check_for_skip` for every graph; it returns a reason not to record the graph."""
    original = getattr(module, "check_for_skip", None)
    if original is None:
        _log.debug("torch has no check_for_skip: the backend cudagraphs records graphs of sharded parameters, too")
        return

    @functools.wraps(original)
    def check_for_skip(*args: Any, **kwargs: Any) -> str | None:
        reason = original(*args, **kwargs)
        if reason is None and _any_sharded(held):
            _say_no_cuda_graphs("the backend cudagraphs")
            reason = "sharded parameters"
        return reason

    module.__dict__["check_for_skip"] = check_for_skip


def _hook_compiling(module: types.ModuleType) -> None:
    """`install_callbacks` encloses everything that compiles: a frame with its graphs, or a backward later."""
    handler = getattr(module, "CompilationCallbackHandler", None)
    original = getattr(handler, "install_callbacks", None)
    if original is None:
        _log.debug("torch has no CompilationCallbackHandler.install_callbacks: the observer runs while it compiles")
        return

    @functools.wraps(original)
    @contextlib.contextmanager
    def install_callbacks(handler: Any, trigger: Any, *args: Any, **kwargs: Any) -> Iterator[None]:
        compiles = getattr(trigger, "name", "") in ("DYNAMO", "LAZY_BACKWARD")
        paused = compiles and not torch.autograd._profiler_enabled()
        with original(handler, trigger, *args, **kwargs), _C.ObserverPause() if paused else contextlib.nullcontext():
            yield

    handler.install_callbacks = install_callbacks  # type: ignore[union-attr]


def _flags(positions: Iterable[int]) -> list[bool]:
    positions = set(positions)
    return [position in positions for position in range(max(positions, default=-1) + 1)]


def _pin_in_kernels(graph: Any) -> str | None:
    """Replaces the graph's kernels by pinned calls, all or none. Returns what prevents it, or None."""
    call = graph.current_callable
    scope = getattr(getattr(call, "__func__", call), "__globals__", None)
    source = getattr(graph, "source_code", None)
    if scope is None or not isinstance(source, str) or _KERNELS_END not in source:
        return "its code is not a Python module with kernels"
    head, _, body = source.partition(_KERNELS_END)
    if "data_ptr" in body:
        return "its kernels are given addresses"
    pinned = {}
    for name, kind, arguments in _KERNEL.findall(head):
        kernel = scope.get(name)
        if isinstance(kernel, (_C.PinnedCall, _PinnedLauncher)):
            continue
        make = _MAKERS.get(kind)
        pinned[name] = None if make is None else make(kernel, name, arguments)
        if pinned[name] is None:
            return f"{name} is a kernel of the unknown kind {kind}"
    scope.update(pinned)
    return None


def _pinned_cpp(kernel: Any, name: str, arguments: str) -> Any:
    """arguments: "['const float*', 'float*'], r'''" """
    kinds = re.match(r"\[[^\]]*\]", arguments)
    if kinds is None or not callable(kernel):
        return None
    written = [kind.endswith("*") and not kind.startswith("const ") for kind in ast.literal_eval(kinds.group())]
    return _C.PinnedCall(kernel, name, written)


class _PinnedLauncher:
    """A kernel of Triton: its attributes, and a `run` that pins pages."""

    def __init__(self, kernel: Any, run: Any):
        self._kernel = kernel
        self.run = run

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kernel, name)


def _pinned_triton(kernel: Any, name: str, arguments: str) -> Any:
    names = getattr(getattr(kernel, "fn", None), "arg_names", None)
    mutated = getattr(kernel, "mutated_arg_names", None)
    if names is None or mutated is None or not hasattr(kernel, "run"):
        return None
    return _PinnedLauncher(kernel, _C.PinnedCall(kernel.run, name, [argument in mutated for argument in names]))


_MAKERS = {"cpp_pybinding": _pinned_cpp, "triton": _pinned_triton}


def _hook_autograd(module: types.ModuleType) -> None:
    """`AOTDispatchAutograd.post_compile` makes the custom function of a graph that is trained."""
    maker = getattr(module, "AOTDispatchAutograd", None)
    original = getattr(maker, "post_compile", None)
    if original is None:
        _log.debug("torch has no AOTDispatchAutograd.post_compile: compiled graphs keep all their parameters resident")
        return

    @functools.wraps(original)
    def post_compile(*args: Any, **kwargs: Any) -> Any:
        run = original(*args, **kwargs)
        first = args[0] if args else next(iter(kwargs.values()))
        if not _fetches(getattr(first, "compiled_fw_func", first)):
            _log.debug("the graph of an unknown backend keeps all its parameters resident while it runs")
            return run
        return functools.update_wrapper(_C.UnobservedCall(run), run)

    maker.post_compile = staticmethod(post_compile)  # type: ignore[union-attr]


def _fetches(function: Any) -> bool:
    """Whether `function` consists only of torch's wrappers around a graph of Inductor or of operators."""
    inductor = sys.modules.get("torch._inductor.output_code")
    graphs = (torch.fx.GraphModule, getattr(inductor, "CompiledFxGraph", torch.fx.GraphModule))
    found = False
    todo, seen = [function], set()
    while todo:
        current = todo.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        if isinstance(current, graphs) or isinstance(getattr(current, "__self__", None), graphs):
            found = True
        elif isinstance(current, types.FunctionType):
            if not current.__code__.co_filename.startswith(_WRAPPERS):
                return False
            todo += [getattr(current, "__wrapped__", None), *_enclosed(current)]
    return found


def _enclosed(function: types.FunctionType) -> list[Any]:
    """The values of its closure, without those that are not set yet."""
    values = []
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):
            values.append(cell.cell_contents)
    return values
