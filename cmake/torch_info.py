"""Prints facts about the installed torch for CMake, as one CMake list."""

import os
import sys

import torch

major, minor = (int(x) for x in torch.__version__.split("+")[0].split(".")[:2])
if (major, minor) < (2, 11):
    sys.exit(f"torch {torch.__version__} is too old")
root = os.path.dirname(torch.__file__)
print(
    ";".join(
        [
            torch.__version__,
            os.path.join(root, "include"),
            os.path.join(root, "include", "torch", "csrc", "api", "include"),
            os.path.join(root, "lib"),
            str(int(torch._C._GLIBCXX_USE_CXX11_ABI)),
            "ON" if torch.version.cuda else "OFF",
        ]
    )
)
