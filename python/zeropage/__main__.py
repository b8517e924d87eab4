"""`python -m zeropage --cmake-dir` prints where the CMake package of the C++ library is: cmake -DCMAKE_PREFIX_PATH=$(...)."""

import argparse
import sys
from pathlib import Path

CMAKE_DIR = Path(__file__).resolve().parent / "share" / "cmake" / "zeropage"


def main() -> int:
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
