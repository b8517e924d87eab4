"""Exit codes of ranks that end with an error of the package: the launcher restarts only jobs that have lost a rank.
docs/launcher.md lists the codes."""

import io
import sys
from types import TracebackType

from . import _C, errors

_CODES: dict[type[BaseException], int] = {getattr(errors, name): code for name, code in _C.EXIT_CODES.items()}


def exit_code(error: BaseException) -> int:
    """The code for an error that ends a process; 1 for errors of other kinds."""
    return next((_CODES[kind] for kind in type(error).__mro__ if kind in _CODES), 1)


def install() -> None:
    """From now on an uncaught error ends this process with its exit code. The traceback is printed as before, by the
    hook before this one."""
    previous = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        previous(kind, error, traceback)
        code = exit_code(error)
        if code != 1 and not sys.flags.interactive:
            # torch.distributed's hook around this one collects the printed text, and would lose it.
            if isinstance(sys.stderr, io.StringIO) and sys.__stderr__ is not None:
                sys.__stderr__.write(sys.stderr.getvalue())
                sys.__stderr__.flush()
            raise SystemExit(
                code
            )  # the interpreter treats this as its normal end, and still runs the registered exit functions

    sys.excepthook = hook
