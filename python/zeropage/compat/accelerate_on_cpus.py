"""Lets Accelerate use several ranks on a machine without GPU.

Without a GPU Accelerate calls `init_distributed` without a backend, and then assumes a job of one process, even if the
launcher has started more: each rank would train alone. If it knows the chosen backend, it counts the ranks.
"""

import sys

import torch.distributed as dist


def tell_backend() -> None:
    """Writes the process group's backend into the state that Accelerate is making now; otherwise does nothing."""
    state = sys.modules.get("accelerate.state")
    if state is None or not dist.is_initialized():
        return
    shared = state.PartialState._shared_state
    if "backend" in shared and shared["backend"] is None:
        shared["backend"] = dist.get_backend()
