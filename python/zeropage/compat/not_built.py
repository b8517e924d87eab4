"""Names of DeepSpeed without a counterpart in this version. They can be imported and used in isinstance; any other use
raises ConfigError."""

from typing import Any

from ..errors import ConfigError


def _refusing(name: str, reason: str) -> type:
    def refuse(cls: type, *args: Any, **kwargs: Any) -> Any:
        raise ConfigError(f"deepspeed.{name} is not available in this version: {reason}")

    return type(name, (), {"__new__": refuse, "__doc__": f"Not available: {reason}."})


_PIPELINE = "ranks are data-parallel only; pipelines are not built"
_EXPERTS = "expert parallelism is not built; a mixture of experts trains as any module, and its experts are paged"
_INFERENCE = (
    "there are no inference kernels; initialize(model=...) without an optimizer evaluates a model at stages 0 to 3"
)

PipelineModule = _refusing("PipelineModule", _PIPELINE)
LayerSpec = _refusing("LayerSpec", _PIPELINE)
TiedLayerSpec = _refusing("TiedLayerSpec", _PIPELINE)
PipelineEngine = _refusing("PipelineEngine", _PIPELINE)
ProcessTopology = _refusing("ProcessTopology", _PIPELINE)
MoE = _refusing("MoE", _EXPERTS)
split_params_into_different_moe_groups_for_optimizer = _refusing(
    "split_params_into_different_moe_groups_for_optimizer", _EXPERTS
)
init_inference = _refusing("init_inference", _INFERENCE)
InferenceEngine = _refusing("InferenceEngine", _INFERENCE)
DeepSpeedHybridEngine = _refusing("DeepSpeedHybridEngine", _INFERENCE)
tp_model_init = _refusing("tp_model_init", "tensor parallelism is not built")
add_tuning_arguments = _refusing(
    "add_tuning_arguments", "arguments for learning-rate tuning are not built; write the section scheduler"
)
MiCS_Init = _refusing("MiCS_Init", "write zeropage.shard_ranks in the configuration, and use zero.Init")
TiledLinear = _refusing(
    "TiledLinear", "tiled linear layers are not built; a parameter is a page of its own where it is large"
)
UlyssesSPAttentionHF = _refusing("UlyssesSPAttentionHF", "sequence parallelism is not built")
UlyssesSPDataLoaderAdapter = _refusing("UlyssesSPDataLoaderAdapter", "sequence parallelism is not built")
OnebitAdam = _refusing("OnebitAdam", "optimizers that compress their traffic are not built")
OnebitLamb = _refusing("OnebitLamb", "optimizers that compress their traffic are not built")
ZeroOneAdam = _refusing("ZeroOneAdam", "optimizers that compress their traffic are not built")


_LOSS_SCALER = "the engine scales the loss of fp16, and engine.optimizer.loss_scaler shows its scale; outside an engine use torch.amp.GradScaler"
LossScalerBase = _refusing("LossScalerBase", _LOSS_SCALER)
LossScaler = _refusing("LossScaler", _LOSS_SCALER)
DynamicLossScaler = _refusing("DynamicLossScaler", _LOSS_SCALER)
CreateLossScaler = _refusing("CreateLossScaler", _LOSS_SCALER)
_CHECKPOINTS = "engine.save_checkpoint writes checkpoints, and never pickles; zeropage.async_save in the configuration writes them in the background"
CheckpointEngine = _refusing("CheckpointEngine", _CHECKPOINTS)
TorchCheckpointEngine = _refusing("TorchCheckpointEngine", _CHECKPOINTS)
FastCheckpointEngine = _refusing("FastCheckpointEngine", _CHECKPOINTS)
DecoupledCheckpointEngine = _refusing("DecoupledCheckpointEngine", _CHECKPOINTS)
create_checkpoint_engine = _refusing("create_checkpoint_engine", _CHECKPOINTS)
ProgressiveLayerDrop = _refusing("ProgressiveLayerDrop", "progressive layer drop is not built")
Eigenvalue = _refusing("Eigenvalue", "eigenvalues for quantized training are not built")


def is_moe_param(parameter: Any) -> bool:
    """False: no parameter belongs to an expert that only some ranks have."""
    return False


def has_moe_layers(model: Any) -> tuple[bool, int]:
    """(whether there are expert-parallel layers, how many experts)"""
    return False, 0
