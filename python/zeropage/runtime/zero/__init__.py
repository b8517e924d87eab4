"""Names that scripts import from `deepspeed.runtime.zero`."""

from . import offload_config, stage3, stage_1_and_2  # noqa: F401
