"""The engine for Python: a module that trains. Placement, reduction and update are in C++ (`_C.Engine`)."""

import gc
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch.utils._pytree import tree_map

from . import _C, parameter_holders, python_gc, report
from .assign_data import assign_data
from .automatic import choose_automatic
from .checkpoint import CheckpointingEngine
from .checkpoint_model import ModelExports
from .compat.parameter_offload import ParameterOffload
from .data_types import parameter_dtype, settle_types
from .dataloader import TrainingLoader, make_dataloader
from .distributed import World, end_unused_groups, make_communicators
from .engine_memory import EngineMemory
from .engine_setup import EngineSetup
from .errors import ConfigError, UsageError
from .lr_schedules import check_step_arguments
from .module_view import ModuleView
from .monitor import Monitor
from .step_observer import StepObserver
from .unknown_parameters import name_others
from .wrapped_tensors import require_plain


class _Ended:
    """Replaces the C++ side of an engine that has ended."""

    def __init__(self, reason: str):
        self._reason = reason

    def __getattr__(self, name: str) -> Any:
        raise UsageError(self._reason)


class ZeropageEngine(EngineSetup, EngineMemory, CheckpointingEngine, ModelExports, ModuleView):
    """Wraps a module. Made by `zeropage.initialize`; the loop is

    loss = engine(batch); engine.backward(loss); engine.step()

    Attributes that the engine does not have are taken from the module. Parameters, buffers and the state dict are the
    module's, with its names.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        config: _C.Config,
        world: World,
        *,
        optimizer: Any = None,
        model_parameters: Any = None,
        lr_scheduler: Any = None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        device: torch.device,
    ):
        super().__init__(model)
        self._config = config
        self._world = world
        self._collate_fn = collate_fn
        self._autocast_dtype = self.autocast_dtype()
        self._losses = _C.Losses()
        self.training_dataloader = None
        self.device = device
        self._communicators = make_communicators(config, self.device, world)
        self._communicator = self._communicators.parameters
        self._config = config = choose_automatic(config, model, self.device, world, self._communicator)
        if config.dump_state and world.rank == 0:
            print(config.effective_json, file=sys.stderr, flush=True)
        self._place_model(model)
        self._in_no_sync = False
        self.optimizer = self._make_optimizer(optimizer, model_parameters, lr_scheduler is not None)
        self._has_optimizer = self.optimizer is not None
        self._core = self._make_core()
        parameter_holders.register_parameters(self, self._core, [parameter for _, parameter, _ in self._named])
        self._broadcast_buffers()
        if self.optimizer is not None:
            self.optimizer.attach(self._core, self._config)
            self.optimizer.on_new_group = weakref.WeakMethod(self._take_new_group)
            parameter_holders.register_optimizer(self._core, self.optimizer)
            if self.zero_optimization_stage() == 3:
                self.optimizer.parameter_offload = ParameterOffload(model)
        self.lr_scheduler = self._make_scheduler(lr_scheduler)
        if not self._has_optimizer and self.zero_optimization_stage() == 3:
            self.optimizer = ParameterOffload(model)  # programs read its lists of hooks
        # A reference cycle would keep the engine's memory until garbage is collected.
        self._observer = StepObserver(weakref.proxy(self), self.config, world.rank)  # type: ignore[arg-type]
        self._print_line = _C.Progress.every_line("samples", sys.stderr.write) if self._prints() else None  # type: ignore[arg-type]
        self._open_saves()
        self._end_gc_hold = (
            weakref.finalize(self, python_gc.release, python_gc.hold()) if config.disable_python_gc else None
        )

    # -- the loop

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's forward; any arguments."""
        self._core.before_forward()
        if self._config.cast_inputs:
            args, kwargs = tree_map(self._cast_input, (args, kwargs))
        with self._observer.phase("forward"), self._autocast():
            return self.module(*args, **kwargs)

    def backward(self, loss: torch.Tensor, retain_graph: bool = False, scale_wrt_gas: bool = True) -> torch.Tensor:
        """Runs the backward of a scalar loss; returns the loss divided by the accumulation steps."""
        if not isinstance(loss, torch.Tensor):
            raise UsageError(f"backward takes the loss, a scalar tensor; got {type(loss).__name__}")
        first = self._core.window_is_new
        with self._observer.phase("backward"):
            scaled = self._core.backward(loss, retain_graph, scale_wrt_gas)
        self._losses.add(loss, first)
        return scaled

    def scale(self, loss: torch.Tensor, retain_graph: bool = False) -> torch.Tensor:
        """For `engine.scale(loss).backward()`, which is equivalent to `engine.backward(loss)`: returns the loss times
        the loss scale of fp16. Its gradients are divided by the accumulation steps. retain_graph: accepted; give it to
        backward.

        Without fp16 `loss.backward()` is enough: its gradients are divided by the accumulation steps when they reach
        the parameters, and stages 0 and 1 reduce them at its end. With fp16 it is an error.
        """
        if not isinstance(loss, torch.Tensor):
            raise UsageError(f"scale takes the loss, a scalar tensor; got {type(loss).__name__}")
        self._losses.add(loss, self._core.window_is_new)
        return self._core.scale(loss)

    def step(self, lr_kwargs: dict[str, Any] | None = None) -> None:
        """Ends a micro step; at an accumulation boundary updates the parameters and advances the learning rate.

        lr_kwargs: arguments for the `step` of the scheduler object given to `initialize`: {"metrics": loss} for
        ReduceLROnPlateau. Raises UsageError before the update when a needed argument is missing, or the scheduler does
        not accept one.
        """
        if self._in_no_sync:
            raise UsageError(
                "It is illegal to call Engine.step() inside no_sync context manager: call it after the block"
            )
        if self.global_rank == 0 and self._has_optimizer:
            self._unknown.say()
        if not self._core.is_accumulation_boundary() or not self._has_optimizer:
            self._core.step()
            return
        check_step_arguments(self.lr_scheduler if self._client_scheduler else None, lr_kwargs or {})
        with self._observer.phase("step"):
            self.optimizer.step()
        if self._client_scheduler and self.lr_scheduler is not None and self._core.last_step.applied:
            self.lr_scheduler.step(**(lr_kwargs or {}))
        self._observer.end_step()
        if self._print_line is not None and self.global_steps % (self._config.steps_per_print or 1) == 0:
            self._print_line.update(*report.progress_sample(self, 1.0))
        self._heed_saves_and_signals()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Discards the gradients so far and starts the accumulation window again. `step` calls it after an update."""
        self._core.zero_grad()

    def is_gradient_accumulation_boundary(self) -> bool:
        """Whether the next `step` updates the parameters."""
        return self._core.is_accumulation_boundary()

    def set_gradient_accumulation_boundary(self, is_boundary: bool | None) -> None:
        """Sets whether the next step is at a boundary, instead of counting micro steps; None: count again."""
        self._core.set_accumulation_boundary(is_boundary)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Several backwards for one `step`, at every stage. Gradients accumulate without it, too. `step` inside is a
        UsageError: call it after the last backward of the window, outside of the scope."""
        if self._in_no_sync:
            raise UsageError("no_sync context manager reentry is unsupported: leave the first one before")
        self._in_no_sync = True
        try:
            yield
        finally:
            self._in_no_sync = False

    def was_step_applied(self) -> bool:
        """Whether the last `step` updated the parameters: False between boundaries, and when it was skipped because of
        an overflow."""
        return self._core.last_step.applied

    def get_global_grad_norm(self) -> float | None:
        """The 2-norm over all ranks before clipping, of the last boundary step; None before the first, after a load,
        and with "compute_grad_norm": false."""
        return self._core.last_step.gradient_norm

    def mean_loss(self) -> float:
        """The mean of this rank's losses since the last update (of the last update, directly after it)."""
        loss = self.known_loss()
        if loss is None:
            raise UsageError("there is no loss yet: call engine.backward first (loss.backward() does not tell it)")
        return loss

    def known_loss(self) -> float | None:
        """As `mean_loss`; None if the program runs `loss.backward()` itself."""
        return self._losses.mean(None if self.has_ended else self._core)  # type: ignore[arg-type]  # None, too

    def coalesce_grad_reduction(self) -> AbstractContextManager:
        """For programs that run several backwards for one step. As with `no_sync`, gradients accumulate without it,
        too."""
        return nullcontext()

    def allreduce_gradients(self, bucket_size: int | None = None) -> None:
        """Does nothing: every backward, or the last one before `step`, reduces gradients before it returns."""

    def _backward_epilogue(self) -> None:
        """Does nothing, as `allreduce_gradients`: the engine detects the end of a backward without it."""

    def compile(
        self,
        backend: str | Callable[..., Any] | None = None,
        compile_kwargs: dict[str, Any] | None = None,
        schedule: Any = None,
        compiled_autograd_enabled: bool = False,
    ) -> None:
        """Compiles the module's forward with torch.compile when it first runs, with `compile_kwargs`.

        Raises ConfigError for DeepSpeed's own passes (`schedule`) and compiled autograd, which this version does not
        have.
        """
        for name, value in (("schedule", schedule), ("compiled_autograd_enabled", compiled_autograd_enabled)):
            if value:
                raise ConfigError(f"engine.compile: {name} is not available in this version: leave it out")
        self.module.compile(**{"backend": backend or "inductor", **(compile_kwargs or {})})
        self.is_compiled = True

    is_compiled = False

    def collect_python_gc(self) -> int:
        """Runs Python's cyclic garbage collector, for programs that have switched it off ("disable_python_gc"). Call it
        at the same point on all ranks. Returns the number of objects found."""
        return gc.collect()

    # -- more parameters

    def add_parameters(self, parameters: Iterable[torch.Tensor] | None = None, **hyperparameters: Any) -> None:
        """Trains more parameters: those that were added to the model after `initialize` (a new head, an adapter), or
        `parameters`. Collective, between updates. They get rank 0's values and the configured precision, and are a
        group of the optimizer with these hyperparameters (lr, weight_decay, ...; defaults for the others). Later
        checkpoints contain them: a resumed run must add them before it loads. Frozen ones cost no optimizer state until
        they are unfrozen.

        Raises UsageError (nothing is new, or during an update), PeerError (ranks differ), ConfigError.
        """
        added = self._unknown.new() if parameters is None else list(parameters)
        if not added:
            raise UsageError(
                "add_parameters: the model has no parameters that the engine does not have; register them in the model first"
            )
        if self._has_optimizer:
            self.optimizer.add_param_group({"params": added, **hyperparameters})
        else:
            self._take(added, -1)

    def _take_new_group(self) -> None:
        groups = self.optimizer.param_groups
        self._take(groups[-1]["params"], len(groups) - 1)

    def _take(self, parameters: list[torch.Tensor], group: int) -> None:
        """group: the index of the group in the optimizer; -1: none."""
        name_of = {id(parameter): name for name, parameter in self.module.named_parameters()}
        known = name_of | {id(parameter): name for name, parameter, _ in self._named}
        named = [(name_of[id(p)], p, group) for p in parameters if id(p) in name_of]
        named += [(name, p, group) for name, p in name_others([{"params": parameters}], known)]
        for name, parameter, _ in named:
            require_plain(name, parameter)
            assign_data(parameter, parameter.data.to(self.device))
        engine_groups = self.optimizer.engine_groups() if self._has_optimizer else []
        whole = self.optimizer.note_whole(named, self._config, self._world.size) if self._has_optimizer else set()
        in_fp32 = settle_types(self.module, self._config, named, self.global_rank, added=True)
        self._core.add_parameters(named, engine_groups, in_fp32, whole)
        self._named = [*self._named, *named]
        parameter_holders.register_parameters(self, self._core, [parameter for _, parameter, _ in self._named])
        self._unknown.learn(parameters)
        if not self._has_optimizer:
            return
        if self.optimizer.shards is not None:
            self.optimizer.shards.extend(self._named, self._core.owned_segments())
        if self._core.scheduled_lrs():
            self.optimizer.pull_hyperparameters()

    # -- data, memory, end

    @property
    def monitor(self) -> Monitor:
        """Receives the metrics; programs may write their own to it."""
        return self._observer.monitor

    def comms_summary(self) -> str:
        """This rank's collectives by operation and size, as `comms_logger` prints them at the end; empty when nothing
        is recorded."""
        return self._core.transfer_table()

    def deepspeed_io(
        self,
        dataset: torch.utils.data.Dataset,
        batch_size: int | None = None,
        route: str = "train",
        pin_memory: bool = True,
        data_sampler: torch.utils.data.Sampler | None = None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        num_local_io_workers: int | None = None,
    ) -> torch.utils.data.DataLoader:
        """A loader of micro batches of this rank's part of a data set; shuffled for the route "train"."""
        return make_dataloader(
            dataset,
            batch_size or self.train_micro_batch_size_per_gpu(),
            self._world,
            self._config.dataloader_drop_last,
            train=route == "train",
            sampler=data_sampler,
            collate_fn=collate_fn or self._collate_fn,
            num_workers=num_local_io_workers or 0,
            pin_memory=pin_memory,
        )

    def _training_loader(self, dataset: torch.utils.data.Dataset) -> TrainingLoader:
        """The loader of `initialize(training_data=...)`: checkpoints keep its position."""
        core = weakref.ref(self._core)
        return make_dataloader(
            dataset,
            self.train_micro_batch_size_per_gpu(),
            self._world,
            self._config.dataloader_drop_last,
            collate_fn=self._collate_fn,
            pin_memory=True,
            progress=lambda: getattr(core(), "micro_steps", 0),
        )

    def destroy(self, consolidate: bool = False) -> None:
        """Ends the engine and frees its state, after a running save. It cannot be used afterwards. Raises the
        CheckpointError of the save.

        The model can still be used: its parameters keep their values. At stage 3 they stay sharded, and operators
        gather them as before, until another engine takes them over or the model is freed. consolidate: makes them whole
        plain parameters on every rank instead; collective. Process groups that were made for this engine end when all
        ranks have destroyed it; this waits at most 2 s for that. At stage 3 and on CPUs some end with the model.
        """
        if self.has_ended:
            return
        self.end("this engine was destroyed; call zeropage.initialize again")
        if consolidate:
            parameter_holders.consolidate(self.module.parameters())
        end_unused_groups(wait_s=2.0)

    @property
    def has_ended(self) -> bool:
        """Whether it was destroyed, or its model given to a later engine."""
        return isinstance(self._core, _Ended)

    def end(self, reason: str) -> None:
        """As `destroy`; `reason` is the message of errors when the engine is used afterwards, with what to do."""
        if self.has_ended:
            return
        try:
            self._close_saves()
        finally:
            self._observer.close()
            self._keep_parameters_only()
            if self._end_gc_hold is not None:
                self._end_gc_hold()
            for holder in (self, self.optimizer, self.lr_scheduler):
                if hasattr(holder, "_core"):
                    holder._core = _Ended(reason)
            self._communicator = self._communicators = None  # type: ignore[assignment]

    def _autocast(self) -> AbstractContextManager:
        """The configured autocast; without one the program's own autocast is unchanged."""
        return nullcontext() if self._autocast_dtype is None else torch.autocast(self.device.type, self._autocast_dtype)

    def _prints(self) -> bool:
        return self._world.rank == 0 and bool(self._config.steps_per_print)

    def _cast_input(self, value: Any) -> Any:
        is_float = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.to(parameter_dtype(self._config, value.dtype)) if is_float else value


DeepSpeedEngine = ZeropageEngine
