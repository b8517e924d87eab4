"""Names that scripts import from `deepspeed.runtime`."""

from . import zero  # noqa: F401
