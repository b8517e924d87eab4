"""Keys of the configuration with the names of `deepspeed.runtime.constants` and similar modules."""

ROUTE_TRAIN, ROUTE_EVAL, ROUTE_PREDICT, ROUTE_ENCODE = "train", "eval", "predict", "encode"

TRAIN_BATCH_SIZE = "train_batch_size"
TRAIN_MICRO_BATCH_SIZE_PER_GPU = "train_micro_batch_size_per_gpu"
GRADIENT_ACCUMULATION_STEPS = "gradient_accumulation_steps"
GRADIENT_CLIPPING = "gradient_clipping"
GRADIENT_PREDIVIDE_FACTOR = "gradient_predivide_factor"
PRESCALE_GRADIENTS = "prescale_gradients"
SPARSE_GRADIENTS = "sparse_gradients"
STEPS_PER_PRINT = "steps_per_print"
WALL_CLOCK_BREAKDOWN = "wall_clock_breakdown"
MEMORY_BREAKDOWN = "memory_breakdown"
DUMP_STATE = "dump_state"
DATALOADER_DROP_LAST = "dataloader_drop_last"
COMMUNICATION_DATA_TYPE = "communication_data_type"

OPTIMIZER, OPTIMIZER_PARAMS, OPTIMIZER_TYPE_DEFAULT = "optimizer", "params", None
SCHEDULER, SCHEDULER_PARAMS, SCHEDULER_TYPE_DEFAULT = "scheduler", "params", None
TYPE, LEGACY_FUSION, MAX_GRAD_NORM = "type", "legacy_fusion", "max_grad_norm"
ADAM_OPTIMIZER, ADAMW_OPTIMIZER, LAMB_OPTIMIZER, LION_OPTIMIZER, ADAGRAD_OPTIMIZER = (
    "adam",
    "adamw",
    "lamb",
    "lion",
    "adagrad",
)
ZERO_ALLOW_UNTESTED_OPTIMIZER = "zero_allow_untested_optimizer"
ZERO_OPTIMIZATION = "zero_optimization"

FP16, BFLOAT16, BFLOAT16_OLD, AMP = "fp16", "bf16", "bfloat16", "amp"
FP16_ENABLED = BFLOAT16_ENABLED = AMP_ENABLED = "enabled"
FP16_LOSS_SCALE, FP16_INITIAL_SCALE_POWER, FP16_LOSS_SCALE_WINDOW = (
    "loss_scale",
    "initial_scale_power",
    "loss_scale_window",
)
FP16_HYSTERESIS, FP16_MIN_LOSS_SCALE, FP16_AUTO_CAST = "hysteresis", "min_loss_scale", "auto_cast"
DATA_TYPES, GRAD_ACCUM_DTYPE = "data_types", "grad_accum_dtype"

CHECKPOINT, LOAD_UNIVERSAL_CHECKPOINT, USE_NODE_LOCAL_STORAGE_CHECKPOINT = (
    "checkpoint",
    "load_universal",
    "use_node_local_storage",
)
CHECKPOINT_TAG_VALIDATION = "tag_validation"
TORCH_DISTRIBUTED_DEFAULT_PORT = 29500

# Keys of the section "fp16" with the names of `deepspeed.runtime.fp16.loss_scaler`.
INITIAL_LOSS_SCALE, SCALE_WINDOW, DELAYED_SHIFT = "init_scale", "scale_window", "delayed_shift"
CONSECUTIVE_HYSTERESIS, MIN_LOSS_SCALE = "consecutive_hysteresis", "min_scale"

# `deepspeed.runtime.swap_tensor`. Here tensors of every size are swapped.
MIN_SWAPPABLE_BYTES = MIN_AIO_BYTES = 2**20
AIO_ALIGNED_BYTES = 1024
