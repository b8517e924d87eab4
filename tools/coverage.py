"""Prints how many lines of zeropage/ ran in the tests of builds that count them (cmake -DZEROPAGE_COVERAGE=ON).

coverage.py FOLDER... [--at-least PERCENT]: for each room and in all: the lines with code, those that ran in any of the
builds, and the percentage. Tests and helpers of tests do not count. Lists the lines that did not run in coverage.txt in
the first folder. Exits with 1 when less than PERCENT of all lines ran, or when a folder has no counters.
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
    done = subprocess.run(command, cwd=notes.parent, capture_output=True, text=True, check=True)
    for document in done.stdout.splitlines():
        report = json.loads(document)
        for file in report["files"]:
            if name := counted_name(file["file"], report["current_working_directory"]):
                for line in file["lines"]:
                    yield name, line["line_number"], line["count"]


def gather(folders: list[Path]) -> Counts:
    """The sums over all object files: headers, templates and files of several targets are compiled more than once."""
    counts: Counts = defaultdict(lambda: defaultdict(int))
    notes = sorted(path.resolve() for folder in folders for path in folder.rglob("*.gcno"))
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
    arguments = parser.parse_args()
    for folder in arguments.folders:
        if not any(folder.rglob("*.gcda")):
            wanted = "build it with ZEROPAGE_COVERAGE=ON and run its tests (make coverage does both)"
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
    sys.exit(main())
