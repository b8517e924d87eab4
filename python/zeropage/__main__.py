"""Commands of the Python package.

`python -m zeropage doctor`, `report RUN`, `top` and `ckpt import`: the commands `zeropage doctor` and so on run these.

`python -m zeropage alias install`: programs that import `deepspeed` get this package (also `remove` and `status`).

`python -m zeropage --cmake-dir`: prints the folder of the CMake package of the C++ library, for
cmake -DCMAKE_PREFIX_PATH=$(...).
"""

import argparse
import sys
from pathlib import Path

from . import alias
from .compat import deepspeed_import
from .errors import ZeropageError
from .exit_codes import exit_code
from .tools import doctor, run_page, top

CMAKE_DIR = Path(__file__).resolve().parent / "share" / "cmake" / "zeropage"
COMMANDS = {
    ("doctor",): doctor.main,
    ("report",): run_page.main,
    ("top",): top.main,
    ("ckpt", "import"): deepspeed_import.main,
    ("alias",): alias.main,
}
IO_EXIT_CODE = 74  # the same as in the command zeropage


def main() -> int:
    for name, command in COMMANDS.items():
        if tuple(sys.argv[1 : 1 + len(name)]) != name:
            continue
        try:
            return command(sys.argv[1 + len(name) :])
        except (ZeropageError, OSError) as error:
            print(f"zeropage: {error}", file=sys.stderr)
            return exit_code(error) if isinstance(error, ZeropageError) else IO_EXIT_CODE
    return print_cmake_dir()


def print_cmake_dir() -> int:
    parser = argparse.ArgumentParser(prog="python -m zeropage")
    parser.add_argument(
        "--cmake-dir", action="store_true", required=True, help="print the folder of zeropage-config.cmake"
    )
    parser.parse_args()
    if not CMAKE_DIR.is_dir():
        hint = "install the package with `pip install .`, or the library with `cmake --install`"
        print(f"zeropage: there is no {CMAKE_DIR}: {hint}", file=sys.stderr)
        return 1
    print(CMAKE_DIR)
    return 0


if __name__ == "__main__":
    sys.exit(main())
