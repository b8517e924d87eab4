"""Prints how many lines of zeropage/ ran in the tests of builds that count them (cmake -DZEROPAGE_COVERAGE=ON).

line_coverage.py FOLDER... [--at-least PERCENT]: for each room and in all: the lines with code, those that ran in any of
the builds, and the percentage. Tests and helpers of tests do not count. Lists the lines that did not run in
coverage.txt in the first folder. Exits with 1 when less than PERCENT of all lines ran, or when a folder has no
counters.

A build's processes count in FOLDER/counters (cmake/coverage.cmake). Their counts are added to gcc's own files first,
and removed from there, so a second run, say after more tests, adds to what the first one found. --forget FOLDER...
removes all counts and does nothing else.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "zeropage"
# Tests, their helpers, and the main functions of programs that only tests run.
NOT_COUNTED = re.compile(r"(_test\.cc|_main\.cc|/testing/.*|/test_\w+\.h|/fuzz_targets\.h)$")

# By file, relative to zeropage/, and line: how often it ran.
Counts = dict[str, dict[int, int]]


def counted_name(name: str, folder: str) -> str | None:
    """`name`, as gcov writes it, relative to zeropage/; None for a file that does not count."""
    path = Path(os.path.normpath(os.path.join(folder, name)))
    if not path.is_relative_to(SOURCES) or NOT_COUNTED.search(str(path)):
        return None
    return str(path.relative_to(SOURCES))


def lines_of(notes: Path) -> Iterator[tuple[str, int, int]]:
    """File, line and count of all lines in one object file. `notes`: its .gcno; without a .gcda nothing has run."""
    # Only files below ROOT: most of the others are headers of the system.
    command = ["gcov", "--json-format", "--stdout", "--relative-only", "--source-prefix", str(ROOT), str(notes)]
    done = subprocess.run(command, cwd=notes.parent, capture_output=True, text=True)
    if done.returncode or "mismatch" in done.stderr:
        wanted = "build everything again (tools/build.sh), --forget the counts and run the tests"
        raise RuntimeError(f"coverage: gcov cannot read the counts of {notes}: {done.stderr.strip()}; {wanted}")
    for document in done.stdout.splitlines():
        report = json.loads(document)
        for file in report["files"]:
            if name := counted_name(file["file"], report["current_working_directory"]):
                for line in file["lines"]:
                    yield name, line["line_number"], line["count"]


def image_of(name: str, folder: Path) -> Path | None:
    """The program or library of a build with that file name. Modules of Python lie in their packages."""
    packages = [ROOT / "python" / "zeropage", ROOT / "tests" / "simulated_device"]
    places = [package / name for package in packages] + sorted(folder.rglob(name))
    return next((path for path in places if path.is_file() and path.parent != folder / "counters"), None)


def write_counters(folder: Path) -> None:
    """Has each program and library of a build add its counts to gcc's files. Raises RuntimeError when one cannot."""
    load = "import ctypes, sys, torch; ctypes.CDLL(sys.argv[1])"
    for counters in sorted((folder / "counters").iterdir()):
        image = image_of(counters.name, folder)
        command = [sys.executable, "-c", load, str(image)] if ".so" in counters.name else [str(image)]
        environment = {**os.environ, "ZEROPAGE_WRITE_COUNTERS": "1"}
        said = ""
        if image:
            said = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60).stderr
        if counters.exists():
            raise RuntimeError(f"coverage: {image or counters.name} did not write its counts: {said}")


def forget(folder: Path) -> None:
    for path in [*folder.rglob("*.gcda"), *(folder / "counters").iterdir()]:
        path.unlink()


def notes_of(folder: Path) -> list[Path]:
    """The .gcno of the objects that the build makes: files of sources that are gone may still lie there."""
    rules = (folder / "build.ninja").read_text()
    return [path for path in folder.rglob("*.gcno") if f"build {path.relative_to(folder).with_suffix('.o')}:" in rules]


def gather(folders: list[Path]) -> Counts:
    """The sums over all object files: headers, templates and files of several targets are compiled more than once."""
    counts: Counts = defaultdict(lambda: defaultdict(int))
    notes = sorted(path for folder in folders for path in notes_of(folder.resolve()))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for lines in pool.map(lambda path: list(lines_of(path)), notes):
            for name, line, count in lines:
                counts[name][line] += count
    return counts


def ranges(numbers: list[int]) -> str:
    """Sorted numbers as text: 3-5, 9."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


def row(name: str, files: list[dict[int, int]]) -> tuple[str, float]:
    """A line of the table, and the percentage of lines that ran."""
    lines = sum(len(file) for file in files)
    ran = sum(count > 0 for file in files for count in file.values())
    percent = 100 * ran / lines
    return f"{name:20} {lines:7} {ran:7} {percent:6.1f} %", percent


def not_built(counts: Counts) -> str:
    """The rooms with source files that are in none of the builds, and the number of these files."""
    names = [str(path.relative_to(SOURCES)) for path in SOURCES.rglob("*.cc") if not NOT_COUNTED.search(str(path))]
    rooms = Counter(os.path.dirname(name) for name in names if name not in counts)
    return ", ".join(f"{room} ({number})" for room, number in sorted(rooms.items()))


def print_table(counts: Counts) -> float:
    """Prints a line for each room and one for all, and returns the percentage of all."""
    rooms: dict[str, list[dict[int, int]]] = defaultdict(list)
    for name, lines in sorted(counts.items()):
        rooms[os.path.dirname(name) or "."].append(lines)
    print(f"{'room':20} {'lines':>7} {'ran':>7}")
    for room, files in sorted(rooms.items()):
        print(row(room, files)[0])
    if others := not_built(counts):
        print(f"coverage: not counted are files that are not in these builds, or have no code: {others}")
    text, percent = row("all rooms", list(counts.values()))
    print(text)
    return percent


def main() -> int:
    parser = argparse.ArgumentParser(description="line coverage of zeropage/")
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--at-least", type=float, default=0.0, metavar="PERCENT")
    parser.add_argument("--forget", action="store_true", help="remove the counts, for new ones")
    arguments = parser.parse_args()
    for folder in arguments.folders:
        if (folder / "counters").is_dir():
            forget(folder) if arguments.forget else write_counters(folder)
    if arguments.forget:
        return 0
    for folder in arguments.folders:
        if not any(folder.rglob("*.gcda")):
            wanted = "build it with ZEROPAGE_COVERAGE=ON and run its tests (make test COVERAGE=1 does both)"
            print(f"coverage: {folder} has no counters: {wanted}", file=sys.stderr)
            return 1
    counts = gather(arguments.folders)
    percent = print_table(counts)
    missing = ((name, sorted(line for line in lines if lines[line] == 0)) for name, lines in sorted(counts.items()))
    listing = arguments.folders[0] / "coverage.txt"
    listing.write_text("".join(f"{name}: {ranges(lines)}\n" for name, lines in missing if lines))
    print(f"coverage: the lines that did not run are in {listing}")
    if percent < arguments.at_least:
        print(f"coverage: {percent:.1f} %, but at least {arguments.at_least:g} % are wanted", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RuntimeError as error:
        sys.exit(str(error))
