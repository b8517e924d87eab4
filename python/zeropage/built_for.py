"""Checks the version of torch for which the C++ module was built. It must not be loaded with another minor version,
because layouts of classes differ.

Importing this module checks that, and must precede the import of the C++ module.
"""

from pathlib import Path

import torch

FILE = Path(__file__).with_suffix(".txt")  # written when the C++ module is built


def check() -> None:
    """Costs some microseconds. Errors: ImportError if torch has another minor version."""
    built = FILE.read_text().strip() if FILE.exists() else torch.__version__
    if built.split(".")[:2] != torch.__version__.split(".")[:2]:
        release = built.partition("+")[0]
        raise ImportError(
            f"zeropage was built for torch {built}, and this is torch {torch.__version__}. Build it for this one, in zeropage's "
            f"folder: pip install --force-reinstall --no-deps . ; or install the other one: pip install torch=={release}"
        )


check()
