"""Runs clang-tidy with the checks of .clang-tidy on the C++ files that changed.

tidy.py [--all] [--seconds S] [FILE...]: without FILE, the files that differ from where this branch left origin/main,
committed or not. A header is checked through a file that includes it. --seconds: no file is started after this time;
the number of files left out is reported. A file without findings is not checked again until it or a changed header
differs. The compile commands are those of check_torch.py, without the flags that only g++ knows.
"""

import argparse
import hashlib
import json
import os
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import check_torch

ROOT = Path(__file__).resolve().parent.parent
TOOL = ROOT / ".venv" / "bin" / "clang-tidy"
CLEAN = ROOT / "build" / "tidy.json"  # by file: the digest of what was checked without a finding
SOURCES = (".cc", ".h")
FILE_TIMEOUT_S = 180

# By file, relative to ROOT: the folder to run in and the compiler's arguments.
Commands = dict[str, tuple[str, list[str]]]


def git(*arguments: str) -> list[str]:
    """The lines that git prints; none when it fails."""
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout.splitlines()


def changed() -> list[str]:
    """C++ files that differ from the commit to compare with, and new ones. Without such a commit: from HEAD."""
    base = git("merge-base", "HEAD", "origin/main") or git("merge-base", "HEAD", "main")
    patterns = [f"*{suffix}" for suffix in SOURCES]
    names = git("diff", "--name-only", "--diff-filter=d", (base or ["HEAD"])[0], "--", *patterns)
    return sorted({*names, *git("ls-files", "--others", "--exclude-standard", "--", *patterns)})


def clang_arguments(command: str) -> list[str]:
    """What clang needs of a command of g++: its macros, folders and standard, without precompiled headers."""
    words = iter(shlex.split(command)[1:])
    kept = []
    for word in words:
        if word in ("-isystem", "-idirafter"):
            kept += [word, next(words)]
        elif word in ("-include", "-o", "-c", "-x"):
            next(words)
        elif word.startswith(("-D", "-I", "-std=")):
            kept.append(word)
    return kept


def read_commands() -> Commands:
    """Of every file that is compiled. Configures a build folder when there is none, or CMake's files are newer. Raises
    subprocess.SubprocessError when that fails."""
    database = ROOT / "build" / "check-torch" / "commands" / "compile_commands.json"
    inputs = [ROOT / "CMakeLists.txt", ROOT / "CMakePresets.json", *(ROOT / "cmake").iterdir()]
    if not database.exists() or database.stat().st_mtime < max(path.stat().st_mtime for path in inputs):
        check_torch.configure()
    commands: Commands = {}
    for entry in json.loads(database.read_text()):
        path = Path(entry["file"])
        if path.is_relative_to(ROOT) and not path.is_relative_to(ROOT / "build"):
            commands.setdefault(str(path.relative_to(ROOT)), (entry["directory"], clang_arguments(entry["command"])))
    return commands


def units_of(name: str, commands: Commands) -> list[str]:
    """The file to compile for `name`: itself; for a header, the file of the same name or another that includes it. None
    when no file of the build does."""
    if not name.endswith(".h"):
        return [name] if name in commands else []
    own = [name[:-2] + ending for ending in (".cc", "_test.cc")]
    including = git("grep", "--untracked", "-l", "-F", f'"{name}"', "--", "*.cc")
    return [unit for unit in [*own, *sorted(including)] if unit in commands][:1]


def digest(name: str, commands: Commands, headers: list[str]) -> str:
    """Of all that decides about the findings in a file, except headers that did not change."""
    texts = [(ROOT / path).read_bytes() for path in [".clang-tidy", name, *headers]]
    return hashlib.sha256(b"\0".join([repr(commands[name]).encode(), *texts])).hexdigest()


def check_one(name: str, commands: Commands, end: float) -> str | None:
    """The findings in a file, empty when there are none. None: not checked, because the time was over."""
    if time.monotonic() > end:
        return None
    folder, arguments = commands[name]
    command = [str(TOOL), "--quiet", f"--header-filter=^{ROOT}/(zeropage|python|tests)/", str(ROOT / name), "--"]
    try:
        done = subprocess.run(
            [*command, *arguments], cwd=folder, capture_output=True, text=True, timeout=FILE_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return f"{name}: clang-tidy took more than {FILE_TIMEOUT_S} s"
    return (done.stdout + done.stderr).replace(f"{ROOT}/", "") if done.returncode else ""


def check(names: list[str], commands: Commands, seconds: float) -> int:
    """Checks the files, prints the findings and a summary, and returns the exit code."""
    units = {name: units_of(name, commands) for name in names}
    headers = [name for name in names if name.endswith(".h")]
    known: dict[str, str] = json.loads(CLEAN.read_text()) if CLEAN.exists() else {}
    digests = {unit: digest(unit, commands, headers) for found in units.values() for unit in found}
    # In the order of their digests: where the time is over first, the next change meets other files.
    waiting = sorted((unit for unit in digests if known.get(unit) != digests[unit]), key=lambda unit: digests[unit])
    end = time.monotonic() + seconds
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        findings = dict(zip(waiting, pool.map(lambda unit: check_one(unit, commands, end), waiting), strict=True))
    known.update({unit: digests[unit] for unit, said in findings.items() if said == ""})
    CLEAN.parent.mkdir(exist_ok=True)
    CLEAN.write_text(json.dumps(known))
    faulty = [said for said in findings.values() if said]
    print("".join(faulty), end="", file=sys.stderr)
    if left_out := sum(said is None for said in findings.values()):
        print(f"clang-tidy: {left_out} files were left out, because the time was over: make tidy checks them")
    if alone := [name for name, found in units.items() if not found]:
        print(f"clang-tidy: not in the build, and not checked: {', '.join(alone)}")
    print(f"clang-tidy: {len(digests) - left_out} changed files, {len(faulty) or 'none'} with findings")
    return 1 if faulty else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="every file of the build; an hour on two cores")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no file is started after this time")
    parser.add_argument("files", nargs="*", metavar="FILE")
    options = parser.parse_args()
    if not TOOL.exists():
        print(f"clang-tidy: {TOOL} is missing; tools/setup.sh tests installs it", file=sys.stderr)
        return 1
    names = options.files or ([] if options.all else changed())
    if not names and not options.all:
        print("clang-tidy: no C++ file changed")
        return 0
    try:
        commands = read_commands()
    except (OSError, subprocess.SubprocessError) as error:
        print(
            f"clang-tidy: CMake could not write the compile commands: {error}. Run cmake --preset dev -B build/tidy-trial "
            "to see why",
            file=sys.stderr,
        )
        return 1
    return check(sorted(commands) if options.all else names, commands, options.seconds)


if __name__ == "__main__":
    sys.exit(main())
