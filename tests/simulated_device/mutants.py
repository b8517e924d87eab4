"""Engines with one wait removed. Each is built and tested on the simulated device, and the tests must fail: they would
find that mistake.

    make mutants                                                        # all; an hour or two on two cores, at night
    .venv/bin/python tests/simulated_device/mutants.py --list           # what there is
    .venv/bin/python tests/simulated_device/mutants.py staging          # those whose name has this word
    .venv/bin/python tests/simulated_device/mutants.py staging --tests tests/test_gpu.py  # whether these tests find it

1. The statements are found in the sources, so new waits are tried without a word here. One that no test can miss,
   because another statement orders the same, is named in EQUIVALENT with the reason.
2. The tests must pass before anything is removed: else every mutant would count as found.
3. Of the build (tools/build.sh, of which this runs what it needs) one file is compiled again, and the Python module is
   linked again, in build/mutants. The checkout's own module stays.
4. A mutant is found when a test fails, or when the tests do not end in time (--timeout_s).
"""

import argparse
import os
import re
import shlex
import signal
import subprocess
import sys
import time
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

BUILD_TIMEOUT_S = 600
UNCHANGED_TIMEOUT_S = 1800

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


def link_package(package: Path) -> None:
    """The Python package, all but its module, in `package`."""
    package.mkdir(parents=True, exist_ok=True)
    for path in (ROOT / "python" / "zeropage").iterdir():
        link = package / path.name
        link.unlink(missing_ok=True)
        if path.name != "_C.so":
            link.symlink_to(path)


def build(source: Path, text: str, folder: Path) -> None:
    """Makes the package in `folder`, with `text` in the place of a source."""
    package = folder / "zeropage"
    link_package(package)
    changed, made = folder / source.name, folder / "changed.o"
    changed.write_text(text)
    known = f"CMakeFiles/zeropage_torch.dir/{source.relative_to(ROOT)}.o"
    words = shlex.split(ninja_command(known))
    words[words.index("-o") + 1], words[words.index("-c") + 1] = str(made), str(changed)
    for option in ("-MT", "-MF"):
        del words[words.index(option) : words.index(option) + 2]
    words.remove("-MD")
    subprocess.run([*words, "-w"], cwd=BUILD, check=True, timeout=BUILD_TIMEOUT_S)  # an empty statement is meant
    # First of all files: the linker takes what it defines from there, and not from the library.
    module = str(ROOT / "python" / "zeropage" / "_C.so")
    command, replaced = re.subn(
        rf"-o {re.escape(module)}", f"-o {package / '_C.so'} {made}", ninja_command("zeropage_python")
    )
    if replaced != 1:
        raise RuntimeError(f"mutants: the command that links the module does not name {module} once: {command}")
    subprocess.run(command, shell=True, cwd=BUILD, check=True, timeout=BUILD_TIMEOUT_S)


@dataclass(frozen=True)
class Outcome:
    """What the tests said about a package."""

    failed: bool
    seconds: float
    why: str  # the first test that failed, or that there was no end


def test(folder: Path, tests: list[str], timeout_s: float) -> Outcome:
    """Runs tests with the package in `folder`. Raises RuntimeError when they could not run at all."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-rfE", "-p", "no:cacheprovider"]
    command += ["-m", "gpu and not cuda", *tests]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}
    began = time.monotonic()
    with open(folder / "tests.log", "w") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with the ranks that tests have started
            process.wait()
            return Outcome(True, time.monotonic() - began, f"no end within {timeout_s:g} s")
    seconds = time.monotonic() - began
    said = (folder / "tests.log").read_text()
    first = re.search(r"^(?:FAILED|ERROR) (\S+)", said, re.MULTILINE)
    if code == 0:
        return Outcome(False, seconds, "")
    if -code in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL):
        raise RuntimeError(f"mutants: somebody ended the tests by signal {-code}, which says nothing about the mutant")
    if code < 0 or "Fatal Python error" in said:
        return Outcome(True, seconds, "the process died")
    if code != 1 or first is None:
        raise RuntimeError(f"mutants: the tests did not run (exit code {code}), see {folder / 'tests.log'}")
    return Outcome(True, seconds, first[1])


def check_path(tests: list[str]) -> float:
    """Builds one source as it is, in the way of the mutants, and runs the tests, which must pass. Returns seconds."""
    folder = MADE / "unchanged"
    source = ROOT / "zeropage" / "paging" / "stream_order.cc"
    build(source, source.read_text(), folder)
    outcome = test(folder, tests, UNCHANGED_TIMEOUT_S)
    if outcome.failed:
        raise SystemExit(f"mutants: the tests fail with nothing removed ({outcome.why}); see {folder / 'tests.log'}")
    return outcome.seconds


def try_all(chosen: list[Mutant], tests: list[str], timeout_s: float) -> int:
    """Returns how many were missed."""
    missed = 0
    for mutant in chosen:
        reason = next((why for words, why in EQUIVALENT.items() if words in mutant.name), None)
        if reason:
            print(f"equivalent       {mutant.name} ({reason})", flush=True)
            continue
        folder = MADE / re.sub(r"\W+", "_", f"{mutant.source.relative_to(ROOT / 'zeropage')}:{mutant.line}")
        build(mutant.source, mutant.text, folder)
        outcome = test(folder, tests, timeout_s)
        missed += not outcome.failed
        word = "found" if outcome.failed else "MISSED"
        print(f"{word:8} {outcome.seconds:5.0f} s  {mutant.name}  {outcome.why}".rstrip(), flush=True)
    return missed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="parts of names; all of them must be in a mutant's name")
    parser.add_argument(
        "--tests", nargs="+", default=list(TESTS), help="files or names of tests, where it is known which must find it"
    )
    parser.add_argument("--list", action="store_true", help="only names them")
    parser.add_argument("--timeout_s", type=float, help="of the tests of one mutant; else by what they take unchanged")
    options = parser.parse_args()
    chosen = [mutant for mutant in all_mutants() if all(word in mutant.name for word in options.words)]
    if options.list or not chosen:
        print("\n".join(mutant.name for mutant in chosen) or "mutants: no wait has these words")
        return not chosen
    subprocess.run(
        [ROOT / "tools" / "build.sh", BUILD, "zeropage_python", "zeropage_cli", "simulated_device"], check=True
    )
    unchanged_s = check_path(options.tests)
    print(f"mutants: {len(chosen)}; the tests pass unchanged, in {unchanged_s:.0f} s", flush=True)
    missed = try_all(chosen, options.tests, options.timeout_s or 3 * unchanged_s + 60)
    print(f"mutants: {missed} of {len(chosen)} missed")
    return missed > 0


if __name__ == "__main__":
    sys.exit(main())
