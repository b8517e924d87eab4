"""Getters of DeepSpeed's engine, in addition to those of `engine_settings.py`.

Most return an effective value of the configuration. Those for keys without effect, and for features that are not built,
return a constant.
"""

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..engine_parts import EngineParts

if TYPE_CHECKING:
    from ..utils.timer import SynchronizedWallClockTimer, ThroughputTimer

# getter -> section and key
_EFFECTIVE = {
    "dataloader_drop_last": "dataloader_drop_last",
    "flops_profiler_detailed": "flops_profiler.detailed",
    "flops_profiler_enabled": "flops_profiler.enabled",
    "flops_profiler_module_depth": "flops_profiler.module_depth",
    "flops_profiler_output_file": "flops_profiler.output_file",
    "flops_profiler_profile_step": "flops_profiler.profile_step",
    "flops_profiler_top_modules": "flops_profiler.top_modules",
    "memory_breakdown": "memory_breakdown",
    "mics_shard_size": "zero_optimization.mics_shard_size",
    "zero_allgather_bucket_size": "zero_optimization.allgather_bucket_size",
    "zero_allow_untested_optimizer": "zero_allow_untested_optimizer",
    "zero_hpz_partition_size": "zero_optimization.zero_hpz_partition_size",
    "zero_max_live_parameters": "zero_optimization.stage3_max_live_parameters",
    "zero_max_reuse_distance": "zero_optimization.stage3_max_reuse_distance",
    "zero_model_persistence_threshold": "zero_optimization.stage3_model_persistence_threshold",
    "zero_overlap_comm": "zero_optimization.overlap_comm",
    "zero_param_persistence_threshold": "zero_optimization.stage3_param_persistence_threshold",
    "zero_prefetch_bucket_size": "zero_optimization.stage3_prefetch_bucket_size",
    "zero_quantized_gradients": "zero_optimization.zero_quantized_gradients",
    "zero_quantized_nontrainable_weights": "zero_optimization.zero_quantized_nontrainable_weights",
    "zero_quantized_weights": "zero_optimization.zero_quantized_weights",
    "zero_reduce_bucket_size": "zero_optimization.reduce_bucket_size",
    "zero_reduce_scatter": "zero_optimization.reduce_scatter",
    "aio_config": "aio",
}
# For keys without effect: what the engine always does.
_FIXED: dict[str, Any] = {
    "checkpoint_serialization_enabled": True,
    "flops_profiler_recompute_fwd_factor": 0.0,
    "load_universal_checkpoint": False,
    "sparse_gradients_enabled": False,
    "use_node_local_storage": False,
    "zero_allgather_partitions": True,
    "zero_contiguous_gradients": True,
    "zero_elastic_checkpoint": False,
    "zero_force_ds_cpu_optimizer": True,
    "zero_ignore_unused_parameters": True,
    "zero_legacy_stage1": False,
    "zero_load_from_fp32_weights": True,
    "zero_module_granularity_threshold": 0,
    "zero_multi_rank_bucket_allreduce": True,
    "zero_round_robin_gradients": False,
    "zero_sub_group_size": 10**9,
}
_OFF = (
    "amp_enabled autotuning_enabled curriculum_enabled_legacy curriculum_learning_enabled data_efficiency_enabled eigenvalue_enabled "
    "elasticity_enabled graph_harvesting is_elastic_model_parallel_supported optimizer_legacy_fusion pld_enabled quantize_training "
    "random_ltd_enabled super_offload swap_optimizer_enabled zenflow"
).split()


def _getter(place: str) -> Callable[[Any], Any]:
    def get(self: Any) -> Any:
        value = self.config
        for name in place.split("."):
            value = value[name]
        return value

    get.__doc__ = f"The effective value of {place}."
    return get


def _constant(value: Any) -> Callable[[Any], Any]:
    def get(self: Any) -> Any:
        return value

    get.__doc__ = f"Always {value}, for any configuration."
    return get


class EngineGetters(EngineParts):
    """Getters with DeepSpeed's names."""

    has_moe_layers = pipeline_parallelism = False
    enable_backward_allreduce = True
    mpu = seq_parallel_group = None

    @cached_property
    def timers(self) -> "SynchronizedWallClockTimer":
        """For the program's own use; the engine's times are in its metrics."""
        from ..utils.timer import SynchronizedWallClockTimer

        return SynchronizedWallClockTimer()

    @cached_property
    def tput_timer(self) -> "ThroughputTimer":
        """For the program's own use, as `timers`."""
        from ..utils.timer import ThroughputTimer

        return ThroughputTimer(
            None, self.train_micro_batch_size_per_gpu() * self.dp_world_size, steps_per_output=self.steps_per_print()
        )

    def get_type(self) -> list[Any]:
        """The entry "type" of each parameter group, 0.0 where it has none."""
        return [group.get("type", 0.0) for group in self.optimizer.param_groups]

    def zero_use_cpu_optimizer(self) -> bool:
        """Whether the update runs on the host."""
        return self.zero_offload_optimizer() is not None

    zero_cpu_offload = zero_use_cpu_optimizer

    def zero_has_nvme_offload(self) -> bool:
        return any(
            section is not None and section["device"] == "nvme"
            for section in (self.zero_offload_optimizer(), self.zero_offload_param())
        )

    zero_nvme_offload_optimizer = zero_has_nvme_offload

    def zero_partial_offload(self) -> float:
        """The share of the optimizer state that is offloaded."""
        section = self.zero_offload_optimizer()
        return 0.0 if section is None else section["ratio"]

    def zero_optimization_partition_gradients(self) -> bool:
        return self.zero_optimization_stage() >= 2

    def zero_optimization_partition_weights(self) -> bool:
        return self.zero_optimization_stage() == 3

    def is_first_weights_partition_group(self) -> bool:
        """Whether this rank belongs to the first copy of the model: always, because there is only one."""
        return True

    def zero_grad_hooks(self) -> bool:
        """False: the engine does not need these hooks."""
        return False

    def postscale_gradients(self) -> bool:
        return not self.prescale_gradients()

    def initial_dynamic_scale(self) -> float:
        return 2.0 ** self.config["fp16"]["initial_scale_power"]

    def dynamic_loss_scale_args(self) -> dict[str, Any] | None:
        """None without a dynamic loss scale."""
        section = self.config["fp16"]
        names = {
            "init_scale": None,
            "scale_window": "loss_scale_window",
            "delayed_shift": "hysteresis",
            "min_scale": "min_loss_scale",
        }
        if not self.dynamic_loss_scale():
            return None
        return {name: self.initial_dynamic_scale() if key is None else section[key] for name, key in names.items()}

    def fp16_master_weights_and_gradients(self) -> bool:
        return self.config["fp16"]["fp16_master_weights_and_grads"]

    def amp_params(self) -> bool:
        return False

    def checkpoint_tag_validation_enabled(self) -> bool:
        """Tags are always compared over the ranks."""
        return True

    checkpoint_tag_validation_fail = checkpoint_tag_validation_enabled

    def get_sequence_data_parallel_group(self) -> Any:
        return self.data_parallel_group


for _name, _place in _EFFECTIVE.items():
    setattr(EngineGetters, _name, _getter(_place))
for _name, _value in {**_FIXED, **dict.fromkeys(_OFF, False)}.items():
    setattr(EngineGetters, _name, _constant(_value))
