"""Compiles every file that includes torch with the headers of other versions of torch.

check_torch.py [--sample N] [--seconds S] VERSION...: the compile commands are those of a build that compiles each file
alone. It is configured in build/check-torch, and not built. The headers of a version are taken from its wheel (530 MB,
once) and are kept in the user's cache, $XDG_CACHE_HOME/zeropage. Objects go to build/check-torch, so a compiler cache
makes the next run short. --sample: only N files, different ones every day, so that all are checked within weeks.
--seconds: no file is started after this time; the number of files left out is reported. Exit code 3: the headers could
not be downloaded, and nothing was checked.
"""

import argparse
import datetime
import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zeropage" / "torch-headers"
DOWNLOAD_TIMEOUT_S = 900
CONFIGURE_TIMEOUT_S = 300
COMPILE_TIMEOUT_S = 300
NO_HEADERS = 3  # exit code


def headers_of(version: str, timeout_s: float) -> Path:
    """The folder with a version's torch/include; downloads the wheel unless it is in the cache. Raises OSError and
    subprocess.SubprocessError when that fails."""
    folder = CACHE / version
    if not folder.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as temporary:
            print(f"check-torch: downloading the headers of torch {version} (530 MB, once)", flush=True)
            command = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "-q",
                f"torch=={version}",
                "--no-deps",
                "-d",
                f"{temporary}/wheel",
            ]
            subprocess.run(command, check=True, timeout=timeout_s)
            (wheel,) = Path(temporary, "wheel").glob("torch-*.whl")
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(
                    f"{temporary}/headers", [name for name in archive.namelist() if name.startswith("torch/include/")]
                )
            os.rename(f"{temporary}/headers", folder)
    return folder


def configure() -> Path:
    """A build folder with a compile command for each file. Raises subprocess.SubprocessError."""
    build = ROOT / "build" / "check-torch" / "commands"
    options = ["-DZEROPAGE_UNITY=OFF", "-DZEROPAGE_TESTS=ON", "-DZEROPAGE_WITH_MPI=AUTO"]
    subprocess.run(
        ["cmake", "--preset", "dev", "-B", build, *options],
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=CONFIGURE_TIMEOUT_S,
    )
    return build


def commands(build: Path, headers: Path, objects: Path) -> list[tuple[str, str, list[str]]]:
    """(file, folder to run in, command) of each torch-facing file, with the other headers and without optimisation."""
    cache = [found] if (found := shutil.which("ccache")) else []
    tasks = {}
    for entry in json.loads((build / "compile_commands.json").read_text()):
        words = shlex.split(entry["command"])
        if (
            entry["file"] in tasks
            or "cmake_pch" in entry["file"]
            or not any("/torch/include" in word for word in words)
        ):
            continue
        words = [re.sub(r"^.*(?=/torch/include)", str(headers), word) for word in words if not word.startswith("-O")]
        if "-include" in words:  # headers that were precompiled with the build's torch
            del words[(at := words.index("-include")) : at + 2]
        name = str(Path(entry["file"]).relative_to(ROOT))
        words[words.index("-o") + 1] = str(objects / (name.replace("/", "_") + ".o"))
        tasks[entry["file"]] = (name, entry["directory"], [*cache, *words, "-O0"])
    return list(tasks.values())


def compile_one(task: tuple[str, str, list[str]], end: float) -> tuple[str, str | None]:
    """(file, the compiler's output, empty on success; None: not started, because the time was over)."""
    name, folder, command = task
    if time.monotonic() > end:
        return name, None
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S)
    return name, done.stderr if done.returncode else ""


def check(build: Path, version: str, headers: Path, sample: int | None, end: float) -> bool:
    """Compiles the files and names those that fail. end: value of time.monotonic() after which no file is started."""
    objects = ROOT / "build" / "check-torch" / version
    objects.mkdir(parents=True, exist_ok=True)
    tasks = commands(build, headers, objects)
    if not tasks:
        print(f"check-torch: the commands in {build} name no file that includes torch", file=sys.stderr)
        return False
    if sample is not None:
        tasks = random.Random(datetime.date.today().toordinal()).sample(tasks, min(sample, len(tasks)))
    # A file takes up to 1.5 GB of compiler memory, so only one compiler per core runs.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        outcomes = list(pool.map(compile_one, tasks, [end] * len(tasks)))
    failed = [(name, said) for name, said in outcomes if said]
    left_out = sum(said is None for _, said in outcomes)
    for name, said in failed:
        print(f"check-torch: {name} does not compile with torch {version}:\n{said[:2000]}", file=sys.stderr)
    compiled = len(tasks) - len(failed) - left_out
    more = f"; {left_out} were left out, because the time was over" if left_out else ""
    print(f"check-torch: torch {version}: {compiled} of {len(tasks) - left_out} files compile{more}")
    return not failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=int, help="only this number of files, chosen by the date")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no file is started after this time")
    parser.add_argument("versions", nargs="+")
    options = parser.parse_args()
    try:
        headers = {
            version: headers_of(version, min(DOWNLOAD_TIMEOUT_S, options.seconds)) for version in options.versions
        }
    except (OSError, subprocess.SubprocessError) as error:
        print(
            f"check-torch: nothing was checked, because the headers could not be downloaded: {error}", file=sys.stderr
        )
        return NO_HEADERS
    end = time.monotonic() + options.seconds
    build = configure()
    good = [check(build, version, headers[version], options.sample, end) for version in options.versions]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
