"""The exceptions of the package. Every message has the expected and the found value, the place, and what to do.

The C++ side throws classes of the same names; the bindings translate them to these.
"""

import builtins


class ZeropageError(RuntimeError):
    """Base of all errors of the package."""


class ConfigError(ZeropageError, ValueError, AssertionError):
    """The configuration or the arguments cannot be used. An AssertionError, too: that is what DeepSpeed raises for most
    of them."""


class UsageError(ZeropageError, AssertionError):
    """The API was called in an order or with objects that make no sense."""


class IoError(ZeropageError, OSError):
    """The operating system refused or failed an operation on a file or a device."""


class CheckpointError(ZeropageError):
    """A checkpoint cannot be written, or its content cannot be trusted."""


class PeerError(ZeropageError):
    """Another rank died, failed, or does something different from this one."""


class TimeoutError(ZeropageError, builtins.TimeoutError):
    """Something did not happen in time."""
