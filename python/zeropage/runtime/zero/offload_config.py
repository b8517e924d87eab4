"""Names of `engine.offload_states`, as `deepspeed.runtime.zero.offload_config` has them."""

from enum import Enum


class OffloadDeviceEnum(str, Enum):
    """Where state can go."""

    none = "none"
    cpu = "cpu"
    nvme = "nvme"


class OffloadStateTypeEnum(str, Enum):
    """What can go. Masters and moments (hp_params, optim_states) lie in one buffer and go together; so do lp_grads and
    contiguous_grad_buffer."""

    optim_states = "optim_states"
    hp_params = "hp_params"
    lp_params = "lp_params"
    lp_grads = "lp_grads"
    contiguous_grad_buffer = "contiguous_grad_buffer"
