"""Engines with one wait removed. Each is built and tested on the simulated device, and the tests must fail: they would
find that mistake.

    .venv/bin/python tests/simulated_device/mutants.py                  # all; an hour on two cores, for the night
    .venv/bin/python tests/simulated_device/mutants.py --list           # what there is
    .venv/bin/python tests/simulated_device/mutants.py transit          # those whose name has this word

The statements are found in the sources, so new waits are tried without a word here. One that no test can miss, because
another statement orders the same, is named in EQUIVALENT with the reason. Needs a build (tools/build.sh); of it only
one file and the Python module are made again, in build/mutants.
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "dev"
MADE = ROOT / "build" / "mutants"
ROOMS = ("paging", "reduce", "engine")
TESTS = (
    "tests/test_device_path.py",
    "tests/test_streamed_updates.py",
    "tests/test_gpu_training.py",
    "tests/test_gpu.py",
)

# The host waits for a device, a stream waits for another, or memory is kept for one.
WAIT = re.compile(
    r"(->|\.)block\(|(->|\.)synchronize\(\)|\bwait_for\(|\bwait_for_stream\(|synchronizeDevice\(|\.enter\(|\.filled_on\("
)

# Words of the mutant's name -> why nothing can fail.
EQUIVALENT: dict[str, str] = {}


@dataclass(frozen=True)
class Mutant:
    """A source file without one statement."""

    source: Path
    line: int
    statement: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.source.relative_to(ROOT / 'zeropage')}:{self.line}: {' '.join(self.statement.split())}"


def after_condition(text: str, at: int) -> int:
    """The place behind `if (...) ` that begins at `at`, or `at`."""
    head = re.compile(r"\s*(if|for|while) \(").match(text, at)
    if not head:
        return at
    depth, place = 1, head.end()
    while depth:
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        place += 1
    return after_condition(text, place)


def mutants_of(source: Path) -> Iterator[Mutant]:
    text = source.read_text()
    for found in WAIT.finditer(text):
        begin = max(text.rfind(mark, 0, found.start()) for mark in (";", "{", "}")) + 1
        begin = after_condition(text, re.compile(r"(\s*//.*\n)*").match(text, begin).end())
        end = text.index(";", found.end()) + 1
        statement = text[begin:end]
        if (
            re.match(r"\s*(\w[\w:&<>\*]*\s+)+\w+\s*=|\s*return|\s*//|\s*\w+\s*$", statement)
            or "[&]" in statement
            or "{" in statement
        ):
            continue  # not a statement of its own
        line = text.count("\n", 0, found.start()) + 1
        yield Mutant(source, line, statement, f"{text[:begin]} {{}}{text[end:]}")


def all_mutants() -> list[Mutant]:
    sources = [
        path
        for room in ROOMS
        for path in sorted((ROOT / "zeropage" / room).glob("*.cc"))
        if not path.stem.endswith("_test")
    ]
    return [mutant for source in sources for mutant in mutants_of(source)]


def ninja_command(target: str) -> str:
    """What ninja would do last for a target."""
    listed = subprocess.run(
        ["ninja", "-C", BUILD, "-t", "commands", target], check=True, capture_output=True, text=True
    )
    return listed.stdout.strip().splitlines()[-1]


def build(mutant: Mutant, folder: Path) -> None:
    """Makes the package with the mutant's module in `folder`."""
    package = folder / "zeropage"
    package.mkdir(parents=True, exist_ok=True)
    for path in (ROOT / "python" / "zeropage").iterdir():
        link = package / path.name
        link.unlink(missing_ok=True)
        if path.name != "_C.so":
            link.symlink_to(path)
    source, made = folder / mutant.source.name, folder / "mutant.o"
    source.write_text(mutant.text)
    known = f"CMakeFiles/zeropage_torch.dir/{mutant.source.relative_to(ROOT)}.o"
    words = shlex.split(ninja_command(known))
    words[words.index("-o") + 1], words[words.index("-c") + 1] = str(made), str(source)
    for option in ("-MT", "-MF"):
        del words[words.index(option) : words.index(option) + 2]
    words = [
        word for word in words if word != "-MD" and not word.startswith("-O")
    ]  # what is built once is not optimized
    subprocess.run(words, cwd=BUILD, check=True)
    module = str(ROOT / "python" / "zeropage" / "_C.so")
    command = ninja_command("zeropage_python").replace(f"-o {module}", f"-o {package / '_C.so'} {made}")
    subprocess.run(command, shell=True, cwd=BUILD, check=True)


def is_found(folder: Path) -> bool:
    """Whether the tests fail with it."""
    tests = [path for path in TESTS if (ROOT / path).exists()]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "gpu and not cuda", *tests]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200)
    except subprocess.TimeoutExpired:
        return True
    (folder / "tests.log").write_text(done.stdout + done.stderr)
    return done.returncode == 1 or done.returncode < 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="parts of names; all of them must be in a mutant's name")
    parser.add_argument("--list", action="store_true", help="only names them")
    options = parser.parse_args()
    chosen = [mutant for mutant in all_mutants() if all(word in mutant.name for word in options.words)]
    if options.list or not chosen:
        print("\n".join(mutant.name for mutant in chosen) or "mutants: no wait has these words")
        return not chosen
    missed = 0
    for number, mutant in enumerate(chosen):
        folder = MADE / str(number)
        reason = next((why for words, why in EQUIVALENT.items() if words in mutant.name), None)
        if reason:
            print(f"equivalent  {mutant.name} ({reason})", flush=True)
            continue
        build(mutant, folder)
        found = is_found(folder)
        missed += not found
        print(f"{'found' if found else 'MISSED':11} {mutant.name}", flush=True)
    print(f"mutants: {missed} of {len(chosen)} missed")
    return missed > 0


if __name__ == "__main__":
    sys.exit(main())
