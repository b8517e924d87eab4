"""Names of DeepSpeed that are implemented in another way here: each row of a table is a name and what it must return.
One process."""

import importlib
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_processes
from torch import nn

import zeropage
from zeropage import alias
from zeropage.errors import ConfigError, UsageError

INF = float("inf")


@pytest.fixture(scope="module", autouse=True)
def with_alias() -> Iterator[None]:
    """`deepspeed` can be imported by the tests of this file, and by no others."""
    sys.path.insert(0, str(alias.FOLDER))
    yield
    sys.path.remove(str(alias.FOLDER))
    for name in [name for name in sys.modules if name.split(".")[0] == "deepspeed"]:
        del sys.modules[name]
    sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__module__ != "deepspeed._names"]


def found(name: str) -> Any:
    """The object of a dotted name."""
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(f"deepspeed.{module}" if module else "deepspeed"), attribute)


def with_gradients(*values: float) -> list[nn.Parameter]:
    parameters = [nn.Parameter(torch.zeros(1)) for _ in values]
    for parameter, value in zip(parameters, values, strict=True):
        parameter.grad = torch.tensor([float(value)])
    return parameters


def clipped(clip: Callable[..., Any]) -> list[float]:
    parameters = with_gradients(3.0, 4.0)
    return [round(clip(parameters, max_norm=1.0).item(), 5), *(round(p.grad.item(), 5) for p in parameters)]


def clipped_tensors(clip: Callable[..., Any]) -> list[float]:
    tensors = [torch.tensor([3.0]), torch.tensor([4.0])]
    return [clip(tensors, max_norm=1.0), *(round(t.item(), 4) for t in tensors)]


def timed(make: Callable[[], Any]) -> bool:
    timers = make()
    timers("a").start()
    timers("a").stop(record=True)
    with pytest.raises(UsageError, match="a timer is not started"):
        timers("a").stop()
    return (
        timers("a").mean() == timers("a").elapsed() > 0 == timers("a").elapsed()
        and timers.has_timer("a")
        and not timers.has_timer("b")
    )


def throughput(make: Callable[..., Any]) -> bool:
    lines: list[str] = []
    timer = make(None, batch_size=8, start_step=1, steps_per_output=2, logging_fn=lines.append)
    for _ in range(4):
        timer.start()
        timer.stop(global_step=True)
    return timer.avg_samples_per_sec() > 0 and timer.global_step_count == 4 and len(lines) == 2


def batch_of(config: Any, **sizes: int) -> list[int]:
    names = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    for name in names:
        setattr(config, name, sizes.get(name))
    config._configure_train_batch_size()
    return [getattr(config, name) for name in names]


# name -> (what is done with it, what that gives)
ANSWERS: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "runtime.utils.prefix_sum_inc": (lambda f: f([0, 1, 2]), [0, 1, 3]),
    "runtime.utils.partition_uniform": (lambda f: [f(10, 3), f(2, 4)], [[0, 4, 7, 10], [0, 1, 2, 2, 2]]),
    "runtime.utils.partition_balanced": (
        lambda f: [f([0, 1, 2, 3, 3, 3], 4), f([1, 1], 1), f([], 2)],
        [[0, 3, 4, 5, 6], [0, 2], [0, 0, 0]],
    ),
    "runtime.utils.call_to_str": (lambda f: [f("f"), f("f", 3, "x", key=2)], ["f()", "f(3, 'x', key=2)"]),
    "runtime.utils.get_only_unique_item": (lambda f: f([2, 2]), 2),
    "runtime.utils.get_global_norm": (lambda f: f([3.0, 4.0]), 5.0),
    "runtime.utils.get_weight_norm": (lambda f: [f([torch.tensor([3.0, 4.0])]), f([torch.tensor([INF])])], [5.0, -1.0]),
    "runtime.utils.get_grad_norm": (
        lambda f: [f(with_gradients(3, 4)), f(with_gradients(3, -4), norm_type=INF), f([])],
        [5.0, 4.0, 0.0],
    ),
    "runtime.utils.get_global_norm_of_tensors": (lambda f: f([torch.tensor([3.0]), torch.tensor([4.0])]), 5.0),
    "runtime.utils.clip_grad_norm_": (clipped, [5.0, 0.6, 0.8]),
    "runtime.utils.clip_tensors_by_global_norm": (clipped_tensors, [5.0, 0.6, 0.8]),
    "runtime.utils.CheckOverflow": (
        lambda c: [c([with_gradients(1, INF)]).check(), c([with_gradients(1)]).check(), c().check_using_norm([1, -1])],
        [True, False, True],
    ),
    "runtime.utils.mask_nan_or_inf_with_val_inplace": (
        lambda f: (lambda t: [f(t), t.tolist()])(torch.tensor([1.0, INF, math.nan])),
        [None, [1.0, -1.0, -1.0]],
    ),
    "runtime.utils.move_to_device": (lambda f: f({"a": [torch.zeros(1)], "b": 2}, "meta")["a"][0].device.type, "meta"),
    "runtime.utils.get_inactive_params": (lambda f: f([nn.Parameter(torch.zeros(1))]), []),
    "runtime.utils.see_memory_usage": (lambda f: f("here", force=True), None),
    "runtime.utils.empty_cache": (lambda f: f(), None),
    "runtime.utils.noop_decorator": (lambda f: f(3), 3),
    "runtime.utils.DummyOptim": (lambda c: c([1]).param_groups, [{"params": [1]}]),
    "runtime.utils.required_torch_version": (lambda f: f(min_version="2.0"), True),
    "runtime.constants.ROUTE_TRAIN": (str, "train"),
    "runtime.constants.GRADIENT_ACCUMULATION_STEPS": (str, "gradient_accumulation_steps"),
    "runtime.fp16.loss_scaler.INITIAL_LOSS_SCALE": (str, "init_scale"),
    "runtime.config.get_bfloat16_enabled": (lambda f: [f({"bfloat16": {"enabled": True}}), f({})], [True, False]),
    "runtime.config.DeepSpeedConfig": (
        lambda c: batch_of(c({"train_batch_size": 2}), train_batch_size=32, gradient_accumulation_steps=2),
        [32, 16, 2],
    ),
    "runtime.zero.config.DeepSpeedZeroConfig": (
        lambda c: c(stage3_gather_fp16_weights_on_model_save=True).gather_16bit_weights_on_model_save,
        True,
    ),
    "runtime.swap_tensor.MIN_SWAPPABLE_BYTES": (int, 2**20),
    "runtime.zero.utils.ZeRORuntimeException": (lambda c: issubclass(c, RuntimeError), True),
    "utils.timer.SynchronizedWallClockTimer": (timed, True),
    "utils.timer.NoopTimer": (lambda c: c()("a").elapsed(), 0.0),
    "utils.timer.ThroughputTimer": (throughput, True),
    "utils.timer.trim_mean": (lambda f: [f([9.0, 1.0, 2.0, 3.0], 0.25), f([], 0.1)], [2.5, 0.0]),
    "monitor.config.get_monitor_config": (
        lambda f: [f({}).enabled, f({"wandb": {"enabled": True}}).wandb.project],
        [False, "deepspeed"],
    ),
    "profiling.flops_profiler.get_model_profile": (
        lambda f: f(nn.Linear(4, 8), (2, 4), print_profile=False, as_string=False),
        (2 * 2 * 4 * 8, 2 * 4 * 8, 40),
    ),
    "__version_major__": (int, 0),
    "__git_hash__": (str, "zeropage"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_a_name_answers(name: str):
    """Catches a name that is missing, or that is there and answers something else than DeepSpeed's does."""
    use, expected = ANSWERS[name]
    assert use(found(name)) == expected


REFUSED = """
runtime.fp16.loss_scaler.LossScaler runtime.fp16.loss_scaler.DynamicLossScaler runtime.fp16.loss_scaler.CreateLossScaler
runtime.checkpoint_engine.checkpoint_engine.CheckpointEngine runtime.checkpoint_engine.torch_checkpoint_engine.TorchCheckpointEngine
runtime.progressive_layer_drop.ProgressiveLayerDrop runtime.eigenvalue.Eigenvalue
"""


@pytest.mark.parametrize("name", REFUSED.split())
def test_a_name_refuses(name: str):
    """Catches a name that is accepted and does nothing."""
    with pytest.raises(ConfigError, match=rf"deepspeed.{name.split('.')[-1]} is not available in this version: \w+"):
        found(name)(1)


def of_stream(accelerator: Any) -> bool:
    with accelerator.stream(accelerator.current_stream()):
        return accelerator.default_stream() is not None


def of_event(accelerator: Any) -> bool:
    first, last = accelerator.Event(enable_timing=True), accelerator.Event(enable_timing=True)
    first.record()
    last.record()
    last.synchronize()
    return last.query() and first.elapsed_time(last) >= 0


def of_lazy_call(accelerator: Any) -> list[Any]:
    calls: list[int] = []
    return [accelerator.lazy_call(lambda: calls.append(1)), calls]


def of_random_state(accelerator: Any) -> bool:
    accelerator.manual_seed_all(5)
    state, first = accelerator.get_rng_state(), torch.rand(1)
    accelerator.set_rng_state(state)
    return (
        bool(torch.rand(1) == first)
        and accelerator.initial_seed() == 5 == accelerator.default_generator(0).initial_seed()
    )


def of_peak(accelerator: Any) -> bool:
    """64 MiB are allocated and freed: the peak counts them until it is reset."""
    before = accelerator.memory_allocated()
    torch.ones(2**24)
    peak = accelerator.max_memory_allocated()
    accelerator.reset_peak_memory_stats()
    return peak - before > 2**25 and accelerator.max_memory_allocated() < peak - 2**25


# method -> (what is asked, the answer on a CPU)
OF_A_CPU: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "device_name": (lambda a: [a.device_name(), a.device_name(1), a.current_device_name(), a._name], ["cpu"] * 4),
    "current_device": (lambda a: [a.set_device(0), a.current_device(), a.is_available()], [None, 0, True]),
    "device_count": (lambda a: a.device_count() >= 1, True),
    "device": (lambda a: a.device(0), torch.device("cpu")),
    "synchronize": (
        lambda a: [a.synchronize(), a.is_synchronized_device(), a.use_host_timers(), a.resolves_data_dependency()],
        [None, True, True, True],
    ),
    "handles_memory_backpressure": (lambda a: a.handles_memory_backpressure(), True),
    "stream": (of_stream, True),
    "Stream": (lambda a: isinstance(a.current_stream(), a.Stream), True),
    "Event": (of_event, True),
    "range_push": (lambda a: [a.range_push("x"), a.range_pop()], [None, None]),
    "lazy_call": (of_lazy_call, [None, [1]]),
    "random": (lambda a: a.random() is torch.random, True),
    "get_rng_state": (of_random_state, True),
    "max_memory_allocated": (of_peak, True),
    "memory_stats": (lambda a: a.memory_stats()["allocated_bytes.all.current"] > 2**20, True),
    "memory_reserved": (lambda a: 2**20 < a.memory_reserved() <= a.max_memory_reserved() < a.total_memory(), True),
    "memory_cached": (lambda a: 2**20 < a.memory_cached() <= a.max_memory_cached(), True),
    "available_memory": (lambda a: 0 < a.available_memory() < a.total_memory(), True),
    "empty_cache": (lambda a: a.empty_cache(), None),
    "is_bf16_supported": (
        lambda a: [a.is_bf16_supported(), a.is_fp16_supported(), a.is_triton_supported()],
        [True, True, False],
    ),
    "supported_dtypes": (lambda a: set(a.supported_dtypes()), {torch.float32, torch.float16, torch.bfloat16}),
    "amp": (lambda a: a.amp().autocast is torch.autocast, True),
    "FloatTensor": (
        lambda a: [a.FloatTensor([1, 2]).dtype, a.HalfTensor([1]).dtype, a.LongTensor(2, 3).shape],
        [torch.float32, torch.float16, (2, 3)],
    ),
    "communication_backend_name": (lambda a: a.communication_backend_name(), "gloo"),
    "pin_memory": (
        lambda a: [a.is_pinned(a.pin_memory(torch.zeros(1))), a.on_accelerator(torch.zeros(1))],
        [False, True],
    ),
    "export_envs": (lambda a: [a.export_envs(), a.visible_devices_envs()], [[], ["CUDA_VISIBLE_DEVICES"]]),
    "set_visible_devices_envs": (
        lambda a: (lambda env: [a.set_visible_devices_envs(env, [1, 2]), env])({}),
        [None, {"CUDA_VISIBLE_DEVICES": "1,2"}],
    ),
    "get_compile_backend": (
        lambda a: [a.get_compile_backend(), a.set_compile_backend("eager"), a.get_compile_backend()],
        ["inductor", None, "eager"],
    ),
    "get_op_builder": (
        lambda a: [
            a.get_op_builder("CPUAdamBuilder")().is_compatible(),
            a.create_op_builder("EvoformerAttnBuilder").is_compatible(),
        ],
        [True, False],
    ),
}


@pytest.mark.parametrize("method", OF_A_CPU)
def test_the_accelerator_answers(method: str, monkeypatch: pytest.MonkeyPatch):
    """Catches a method of get_accelerator() that is missing on a CPU, or answers for a GPU."""
    from zeropage.compat import accelerator

    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    ask, expected = OF_A_CPU[method]
    assert ask(accelerator.Accelerator()) == expected


def test_the_accelerator_refuses_graphs_and_unknown_compilers(monkeypatch: pytest.MonkeyPatch):
    """Catches graphs of operators that record nothing, and a compiler's name that fails much later."""
    from zeropage.compat import accelerator

    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    of_cpu = accelerator.Accelerator()
    for use in (of_cpu.create_graph, lambda: of_cpu.capture_to_graph(None)):
        with pytest.raises(UsageError, match="need CUDA; this device is cpu"):
            use()
    with pytest.raises(UsageError, match="no backend 'speedy'"):
        of_cpu.set_compile_backend("speedy")
    with pytest.raises(AttributeError, match="no attribute 'QuadTensor'"):
        of_cpu.QuadTensor([1])


def on_each_rank() -> dict[str, Any]:
    """The names that communicate, on gradients that differ between the ranks."""
    from zeropage.comm import get_world_group, init_distributed
    from zeropage.runtime.gradient_norms import CheckOverflow, clip_grad_norm_
    from zeropage.runtime.partition import PartitionedTensor

    init_distributed()
    rank = torch.distributed.get_rank()
    whole = torch.arange(15.0).view(5, 3)
    part = PartitionedTensor(whole, get_world_group())
    parameters = with_gradients(3.0 + 3 * rank, 4.0 + 4 * rank)  # of norms 5 and 10
    return {
        "part": part.local_size(),
        "full": part.full(),
        "norm": clip_grad_norm_(parameters, max_norm=1.5).item(),
        "gradients": [round(p.grad.item(), 4) for p in parameters],
        "overflow": CheckOverflow([with_gradients(1.0, INF if rank == 1 else 1.0)]).check(),
        "none": CheckOverflow([with_gradients(1.0)]).check(),
    }


@pytest.mark.slow
def test_names_that_communicate(tmp_path: Path):
    """Catches ranks that scale their gradients differently, an overflow that only one rank sees, and parts that
    together are not the whole."""
    first, second = run_processes(2, "test_deepspeed_names", "on_each_rank", "{}", tmp_path)
    assert [first["part"], second["part"]] == [(8,), (7,)]
    for rank in (first, second):
        assert torch.equal(rank["full"], torch.arange(15.0).view(5, 3))
        assert rank["norm"] == pytest.approx(7.5) and rank["overflow"] and not rank["none"]
    assert [first["gradients"], second["gradients"]] == [[0.6, 0.8], [1.2, 1.6]]


GETTERS: dict[str, Any] = {
    "get_type": [0.0],
    "zero_optimization_stage": 3,
    "zero_optimization_partition_gradients": True,
    "zero_optimization_partition_weights": True,
    "zero_use_cpu_optimizer": True,
    "zero_cpu_offload": True,
    "zero_has_nvme_offload": False,
    "zero_nvme_offload_optimizer": False,
    "zero_partial_offload": 1.0,
    "zero_reduce_bucket_size": 1000,
    "zero_allgather_bucket_size": 500_000_000,
    "zero_sub_group_size": 10**9,
    "zero_max_live_parameters": 123,
    "zero_max_reuse_distance": 10**9,
    "zero_prefetch_bucket_size": 77,
    "zero_param_persistence_threshold": 5,
    "zero_model_persistence_threshold": sys.maxsize,
    "zero_module_granularity_threshold": 0,
    "zero_overlap_comm": True,
    "zero_reduce_scatter": True,
    "zero_allgather_partitions": True,
    "zero_contiguous_gradients": True,
    "zero_round_robin_gradients": False,
    "zero_load_from_fp32_weights": True,
    "zero_elastic_checkpoint": False,
    "zero_ignore_unused_parameters": True,
    "zero_legacy_stage1": False,
    "zero_multi_rank_bucket_allreduce": True,
    "zero_grad_hooks": False,
    "zero_hpz_partition_size": 1,
    "zero_quantized_weights": False,
    "zero_quantized_nontrainable_weights": False,
    "zero_quantized_gradients": False,
    "zero_allow_untested_optimizer": False,
    "zero_force_ds_cpu_optimizer": True,
    "is_first_weights_partition_group": True,
    "mics_shard_size": -1,
    "memory_breakdown": False,
    "dataloader_drop_last": False,
    "sparse_gradients_enabled": False,
    "flops_profiler_enabled": False,
    "flops_profiler_profile_step": 1,
    "flops_profiler_module_depth": -1,
    "flops_profiler_top_modules": 1,
    "flops_profiler_detailed": True,
    "flops_profiler_output_file": None,
    "flops_profiler_recompute_fwd_factor": 0.0,
    "postscale_gradients": True,
    "initial_dynamic_scale": 65536.0,
    "dynamic_loss_scale_args": None,
    "fp16_master_weights_and_gradients": False,
    "checkpoint_tag_validation_enabled": True,
    "checkpoint_tag_validation_fail": True,
    "checkpoint_serialization_enabled": True,
    "load_universal_checkpoint": False,
    "use_node_local_storage": False,
    "amp_enabled": False,
    "amp_params": False,
    "pld_enabled": False,
    "elasticity_enabled": False,
    "autotuning_enabled": False,
    "eigenvalue_enabled": False,
    "curriculum_enabled_legacy": False,
    "curriculum_learning_enabled": False,
    "data_efficiency_enabled": False,
    "random_ltd_enabled": False,
    "quantize_training": False,
    "graph_harvesting": False,
    "is_elastic_model_parallel_supported": False,
    "optimizer_legacy_fusion": False,
    "super_offload": False,
    "swap_optimizer_enabled": False,
    "zenflow": False,
    "get_sequence_data_parallel_group": None,
}


def test_getters_of_the_engine():
    """Catches a getter that is missing, or that does not answer with the effective value."""
    zero = {
        "stage": 3,
        "offload_optimizer": {"device": "cpu"},
        "reduce_bucket_size": 1000,
        "stage3_max_live_parameters": 123,
    }
    zero |= {"stage3_prefetch_bucket_size": 77, "stage3_param_persistence_threshold": 5}
    config = {"train_batch_size": 4, "optimizer": {"type": "AdamW"}, "zero_optimization": zero}
    engine, *_ = zeropage.initialize(model=nn.Linear(2, 2), config=config)
    assert {name: getattr(engine, name)() for name in GETTERS} == GETTERS
    assert engine.aio_config()["block_size"] == 2**20
    engine.timers("mine").start()
    assert engine.timers.has_timer("mine") and engine.tput_timer.batch_size == 4
    scaler = engine.optimizer.loss_scaler
    assert [engine.optimizer.needs_scaler(), scaler.cur_scale, scaler.loss_scale, scaler.dynamic] == [
        False,
        1.0,
        1.0,
        False,
    ]
    engine.destroy()


def test_getters_of_fp16():
    """Catches a loss scale that programs read as another than the engine's."""
    config = {
        "train_batch_size": 1,
        "fp16": {"enabled": True, "initial_scale_power": 4},
        "optimizer": {"type": "AdamW"},
    }
    engine, *_ = zeropage.initialize(model=nn.Linear(2, 2), config=config)
    scaler = engine.optimizer.loss_scaler
    assert [engine.optimizer.needs_scaler(), scaler.cur_scale, scaler.dynamic, engine.initial_dynamic_scale()] == [
        True,
        16.0,
        True,
        16.0,
    ]
    assert engine.dynamic_loss_scale_args() == {
        "init_scale": 16.0,
        "scale_window": 1000,
        "delayed_shift": 2,
        "min_scale": 1.0,
    }
    engine.destroy()


def test_batch_sizes_that_do_not_fit():
    """Catches DeepSpeedConfig that accepts three batch sizes that contradict each other, or none."""
    config = found("runtime.config.DeepSpeedConfig")({"train_batch_size": 2})
    for sizes in ({"train_batch_size": 33, "gradient_accumulation_steps": 2}, {"gradient_accumulation_steps": 2}):
        with pytest.raises(AssertionError):
            batch_of(config, **sizes)


def test_writers_of_a_program(tmp_path: Path):
    """Catches writers of metrics that a program makes itself and that write nothing, or twice."""
    section = {"enabled": True, "output_path": str(tmp_path), "job_name": "job"}
    config = found("monitor.config.get_monitor_config")({"csv_monitor": section})
    for make, given in (
        ("monitor.monitor.MonitorMaster", config),
        ("monitor.csv_monitor.csvMonitor", config.csv_monitor),
    ):
        writer = found(make)(given)
        assert writer.enabled
        writer.write_events([("Train/loss", 0.5, 8)])
        writer.close()
    assert (tmp_path / "job" / "Train_loss.csv").read_text().splitlines() == ["step,loss", "8,0.5", "8,0.5"]


def test_an_old_name_of_the_configuration_file(tmp_path: Path):
    """Catches scripts that still give their configuration as args.deepscale_config."""
    from argparse import Namespace

    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"train_batch_size": 3, "optimizer": {"type": "AdamW"}}))
    engine, *_ = zeropage.initialize(args=Namespace(deepscale_config=str(path)), model=nn.Linear(2, 2))
    assert engine.train_batch_size() == 3
