"""`python -m zeropage doctor`, `report RUN` and `top`, which `zeropage doctor`, `zeropage report RUN` and `zeropage top` become, and

`python -m zeropage --cmake-dir`: prints where the CMake package of the C++ library is: cmake -DCMAKE_PREFIX_PATH=$(...).
"""

import argparse
import sys
from pathlib import Path

from . import doctor, run_page, top
from .errors import ZeropageError

CMAKE_DIR = Path(__file__).resolve().parent / "share" / "cmake" / "zeropage"
COMMANDS = {"doctor": doctor.main, "report": run_page.main, "top": top.main}
CONFIG_EXIT_CODE, IO_EXIT_CODE = 64, 74  # as the command zeropage has them


def main() -> int:
    if len(sys.argv) > 1 and sys.argv[1] in COMMANDS:
        try:
            return COMMANDS[sys.argv[1]](sys.argv[2:])
        except (ZeropageError, OSError) as error:
            print(f"zeropage: {error}", file=sys.stderr)
            return IO_EXIT_CODE if isinstance(error, OSError) else CONFIG_EXIT_CODE
    return print_cmake_dir()


def print_cmake_dir() -> int:
    parser = argparse.ArgumentParser(prog="python -m zeropage")
    parser.add_argument("--cmake-dir", action="store_true", required=True, help="print the folder of zeropage-config.cmake")
    parser.parse_args()
    if not CMAKE_DIR.is_dir():
        hint = "install the package with `pip install .`, or the library with `cmake --install`"
        print(f"zeropage: there is no {CMAKE_DIR}: {hint}", file=sys.stderr)
        return 1
    print(CMAKE_DIR)
    return 0


if __name__ == "__main__":
    sys.exit(main())
