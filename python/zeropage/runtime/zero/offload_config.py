"""Names for `engine.offload_states`, as in `deepspeed.runtime.zero.offload_config`."""

from enum import Enum


class OffloadDeviceEnum(str, Enum):
    """The places for offloaded state."""

    none = "none"
    cpu = "cpu"
    nvme = "nvme"


class OffloadStateTypeEnum(str, Enum):
    """The kinds of state that can be offloaded. Masters and moments (hp_params, optim_states) are in one buffer and are
    moved together; so are lp_grads and contiguous_grad_buffer."""

    optim_states = "optim_states"
    hp_params = "hp_params"
    lp_params = "lp_params"
    lp_grads = "lp_grads"
    contiguous_grad_buffer = "contiguous_grad_buffer"
