"""Accelerate on a machine without GPU.

Accelerate looks for a GPU, finds none, asks `init_distributed` for no backend in particular, and then takes the job for
one process, whatever the launcher has started: each rank would train alone. Told the backend that was chosen, it counts
the ranks.
"""

import sys

import torch.distributed as dist


def tell_backend() -> None:
    """Writes the process group's backend into the state that Accelerate is making at this moment; else does nothing."""
    state = sys.modules.get("accelerate.state")
    if state is None or not dist.is_initialized():
        return
    shared = state.PartialState._shared_state
    if "backend" in shared and shared["backend"] is None:
        shared["backend"] = dist.get_backend()
