"""A build on a machine that does not have the header libraries and cannot install them (cmake/headers.cmake)."""

import re
import subprocess
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROWS = re.findall(
    r"^header_library\((\S+) (\S+) \S+ (\S+)\n  [0-9a-f]{64}\)$", (ROOT / "cmake" / "headers.cmake").read_text(), re.M
)
FILES = ("base/log.cc", "base/machine_json.cc", "base/digest.cc", "optim/convert.cc")
TIMEOUT_S = 300


# In a separate view of the file system: /usr/include with a layer above it in which the libraries are deleted.
HIDE = """set -e
mount -t tmpfs none {place}
mkdir {place}/upper {place}/work
mount -t overlay none -o lowerdir={includes},upperdir={place}/upper,workdir={place}/work {includes}
rm -rf {libraries}
"""


def hide(place: Path) -> str:
    """Shell commands that hide the installed libraries."""
    place.mkdir(exist_ok=True)
    libraries = " ".join(str(installed(header)) for header, *_ in ROWS)
    return HIDE.format(place=place, includes="/usr/include", libraries=libraries)


def why_not(place: Path) -> str | None:
    done = subprocess.run(["unshare", "--mount", "sh", "-c", hide(place)], capture_output=True, text=True)
    return None if done.returncode == 0 else f"headers cannot be hidden here: {done.stderr}"


def installed(header: str) -> Path:
    """The folder or the file that an installed library consists of."""
    return Path("/usr/include", header.split("/")[0])


def make_tarballs(folder: Path) -> None:
    folder.mkdir()
    for header, subfolder, name in ROWS:
        with tarfile.open(folder / name, "w:xz" if name.endswith("xz") else "w:gz") as archive:
            place = installed(header)
            archive.add(place, f"library-1.0/{subfolder}/{place.name}")


def cmake(folder: Path, *settings: str, build: str = "true") -> subprocess.CompletedProcess:
    """Configures a torch-free build in a view of the file system without the installed headers, and runs `build`."""
    words = [
        "-DZEROPAGE_WITH_TORCH=OFF",
        "-DZEROPAGE_TESTS=OFF",
        "-DZEROPAGE_WITH_MPI=OFF",
        "-DCMAKE_BUILD_TYPE=Debug",
        *settings,
    ]
    script = hide(folder.with_name("hidden")) + f"cmake -S {ROOT} -B {folder} -G Ninja {' '.join(words)} && {build}"
    command = ["unshare", "--mount", "sh", "-c", script]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)


def test_a_machine_without_the_libraries_builds_from_tarballs(tmp_path):
    """Catches a library that is still searched in the system, a wrong folder in its source, and a missing file
    without its address."""
    if reason := why_not(tmp_path / "hidden"):
        pytest.skip(reason)
    assert {header.split("/")[0] for header, *_ in ROWS} == {"nlohmann", "fmt", "spdlog", "CLI", "xxhash.h", "hwy"}
    make_tarballs(tmp_path / "tarballs")
    objects = [f"CMakeFiles/zeropage_core.dir/zeropage/{file}.o" for file in FILES]
    parser = f"echo '#include <CLI/CLI.hpp>' | c++ -std=c++20 -E -x c++ -idirafter {tmp_path}/build/_deps/c_cli11-src/include - >/dev/null"
    build = f"ninja -C {tmp_path}/build {' '.join(objects)} && {parser}"
    settings = (f"-DZEROPAGE_TARBALLS={tmp_path / 'tarballs'}", "-DZEROPAGE_UNITY=OFF")  # each file by itself
    done = cmake(tmp_path / "build", *settings, build=build)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (tmp_path / "tarballs" / ROWS[1][2]).unlink()
    done = cmake(tmp_path / "again", f"-DZEROPAGE_TARBALLS={tmp_path / 'tarballs'}")
    assert done.returncode != 0 and re.search(rf"there\s+is\s+no\s+{re.escape(ROWS[1][2])}", done.stderr)
