"""Engines with one wait removed. Each is tested on the simulated device, and the tests must fail, which shows that they
would find that mistake.

    make mutants                                                        # all; half an hour on two idle cores
    .venv/bin/python tests/simulated_device/mutants.py --list           # what there is
    .venv/bin/python tests/simulated_device/mutants.py staging          # those whose name has this word
    .venv/bin/python tests/simulated_device/mutants.py staging --tests tests/test_gpu.py  # whether these tests find it

1. The statements are found in the sources, so new waits are tried without a change here. A wait whose removal cannot be
   found, because another statement orders the same, is named in EQUIVALENT with the reason.
2. One module has all mutants: each statement checks whether the environment removes it (ZEROPAGE_MUTANT). Only these
   files of the build (tools/build.sh, run here for the needed targets) are compiled again, and the Python module is
   linked again, in build/mutants. The checkout's own module is not changed.
3. The tests must pass before anything is removed: else every mutant would count as found.
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
ROOMS = ("comm/c10d", "memory", "paging", "reduce", "engine")
TESTS = (
    "tests/test_device_streams.py",
    "tests/test_freed_memory.py",
    "tests/test_device_path.py",
    "tests/test_streamed_updates.py",
    "tests/test_gpu_training.py",
    "tests/test_gpu.py",
    "tests/test_device_waits.py",
    "tests/test_gpu_hybrid.py",
)

VARIABLE = "ZEROPAGE_MUTANT"
BUILD_TIMEOUT_S = 600
UNCHANGED_TIMEOUT_S = 1800

# The host waits for a device, a stream waits for another, or memory is kept for one.
WAIT = re.compile(
    r"(->|\.)block\(|(->|\.)synchronize\(\)|\bwait_for\(|\bwait_for_stream\(|synchronizeDevice\(|\.enter\(|\.filled_on\(|"
    r"\bnote_use\(|recordStream\(|record_stream\("
)

# Once in a unit, which has several sources.
IS_REMOVED = f"""
#ifndef ZEROPAGE_IS_REMOVED
#define ZEROPAGE_IS_REMOVED
#include <cstdlib>
#include <cstring>
static bool is_removed(const char* place) {{
  const char* removed = std::getenv("{VARIABLE}");
  return removed != nullptr && std::strcmp(removed, place) == 0;
}}
#endif
"""

# Words of the mutant's statement, because lines move -> the reason why nothing can fail.
EQUIVALENT: dict[str, str] = {
    "the copy of updated parameters to the device": "the log is written when a gradient is there, which the device computes after that",
    "paging/pager_codes.cc": "collectives run one after the other: the page's gather comes after the stream that started it, and the next one into its frame after the gather of exact values, which comes after the decoding",
}


@dataclass(frozen=True)
class Mutant:
    """A statement of a source that can be removed."""

    source: Path
    line: int
    begin: int  # in the text
    end: int
    statement: str

    @property
    def place(self) -> str:
        return f"{self.source.relative_to(ROOT / 'zeropage')}:{self.line}"

    @property
    def name(self) -> str:
        return f"{self.place}: {' '.join(self.statement.split())}"


def after_condition(text: str, at: int) -> int:
    """The end of an `if (...) ` that begins at `at`; without one, `at`."""
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
        comments = re.compile(r"(\s*//.*\n)*").match(text, begin)
        assert comments is not None, "this pattern also matches where there is no comment"
        begin = after_condition(text, comments.end())
        end = text.index(";", found.end()) + 1
        statement = text[begin:end]
        if (
            re.match(r"\s*(\w[\w:&<>\*]*\s+)+\w+\s*=|\s*return|\s*//|\s*\w+\s*$", statement)
            or "[&]" in statement
            or "{" in statement
        ):
            continue  # not a separate statement
        line = text.count("\n", 0, found.start()) + 1
        yield Mutant(source, line, begin, end, statement)


def removable(source: Path, mutants: list[Mutant]) -> str:
    """The text of a source in which each of the statements checks whether it should be removed."""
    text = source.read_text()
    for mutant in sorted(mutants, key=lambda mutant: mutant.begin, reverse=True):
        guarded = f' {{ if (!is_removed("{mutant.place}")) {mutant.statement} }}'
        text = text[: mutant.begin] + guarded + text[mutant.end :]
    return IS_REMOVED + text


def all_mutants() -> list[Mutant]:
    sources = [
        path
        for room in ROOMS
        for path in sorted((ROOT / "zeropage" / room).glob("*.cc"))
        if not path.stem.endswith("_test")
    ]
    return [mutant for source in sources for mutant in mutants_of(source)]


def ninja_command(target: str) -> str:
    """The last command that ninja would run for a target."""
    listed = subprocess.run(
        ["ninja", "-C", BUILD, "-t", "commands", target], check=True, capture_output=True, text=True
    )
    return listed.stdout.strip().splitlines()[-1]


def link_package(package: Path) -> None:
    """Links the Python package without its module into `package`."""
    package.mkdir(parents=True, exist_ok=True)
    for path in (ROOT / "python" / "zeropage").iterdir():
        link = package / path.name
        link.unlink(missing_ok=True)
        if path.name != "_C.so":
            link.symlink_to(path)


def unit_of(source: Path) -> Path:
    """The file that the build compiles: the source, or one that includes it with others of its folder."""
    for unit in sorted((BUILD / "CMakeFiles" / "zeropage_torch.dir" / "Unity").glob("*.cxx")):
        if f'"{source}"' in unit.read_text():
            return unit
    return source


def compile_again(unit: Path, contents: dict[Path, str]) -> Path:
    """The object file of `unit` with other contents of some of its sources."""
    changed = {source: MADE / str(source.relative_to(ROOT / "zeropage")).replace("/", "_") for source in contents}
    for source, text in contents.items():
        changed[source].write_text(text)
    if unit in contents:
        compiled, target = changed[unit], str(unit.relative_to(ROOT))
    else:
        compiled, target = MADE / unit.name, str(unit.relative_to(BUILD / "CMakeFiles" / "zeropage_torch.dir"))
        text = unit.read_text()
        for source, path in changed.items():
            text = text.replace(f'"{source}"', f'"{path}"')
        compiled.write_text(text)
    made = compiled.with_suffix(".o")
    words = shlex.split(ninja_command(f"CMakeFiles/zeropage_torch.dir/{target}.o"))
    words[words.index("-o") + 1], words[words.index("-c") + 1] = str(made), str(compiled)
    for option in ("-MT", "-MF"):
        del words[words.index(option) : words.index(option) + 2]
    words.remove("-MD")
    words.append("-Wno-misleading-indentation")  # of the guards
    subprocess.run(words, cwd=BUILD, check=True, timeout=BUILD_TIMEOUT_S)
    return made


def build(mutants: list[Mutant]) -> None:
    """Makes the package in MADE, with all mutants in its module."""
    link_package(MADE / "zeropage")
    contents: dict[Path, dict[Path, str]] = {}
    for source in sorted({mutant.source for mutant in mutants}):
        text = removable(source, [mutant for mutant in mutants if mutant.source == source])
        contents.setdefault(unit_of(source), {})[source] = text
    made = [compile_again(unit, changed) for unit, changed in contents.items()]
    # First of all files, so that the linker uses their definitions and not the library's.
    module = str(ROOT / "python" / "zeropage" / "_C.so")
    objects = " ".join(map(str, made))
    command, replaced = re.subn(
        rf"-o {re.escape(module)}", f"-o {MADE / 'zeropage' / '_C.so'} {objects}", ninja_command("zeropage_python")
    )
    if replaced != 1:
        raise RuntimeError(f"mutants: the command that links the module does not name {module} once: {command}")
    subprocess.run(command, shell=True, cwd=BUILD, check=True, timeout=BUILD_TIMEOUT_S)


@dataclass(frozen=True)
class Outcome:
    """The result of the tests for a mutant."""

    failed: bool
    seconds: float
    why: str  # the first test that failed, or that the tests did not end


def test(removed: Mutant | None, tests: list[str], timeout_s: float) -> Outcome:
    """Runs tests with or without a mutant. Raises RuntimeError when they could not run at all."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-rfE", "-p", "no:cacheprovider"]
    command += ["-m", "gpu and not cuda", *tests]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(MADE), os.environ.get("PYTHONPATH", "")])}
    environment[VARIABLE] = removed.place if removed else ""
    log_file = MADE / (re.sub(r"\W+", "_", environment[VARIABLE] or "unchanged") + ".log")
    began = time.monotonic()
    with open(log_file, "w") as log:
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
    messages = log_file.read_text()
    first = re.search(r"^(?:FAILED|ERROR) (\S+)", messages, re.MULTILINE)
    if code == 0:
        return Outcome(False, seconds, "")
    if -code in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL):
        raise RuntimeError(f"mutants: the tests were ended by signal {-code}, which is no result for the mutant")
    if code < 0 or "Fatal Python error" in messages:
        return Outcome(True, seconds, "the process died")
    if code != 1 or first is None:
        raise RuntimeError(f"mutants: the tests did not run (exit code {code}), see {log_file}")
    return Outcome(True, seconds, first[1])


def try_all(chosen: list[Mutant], tests: list[str], timeout_s: float) -> int:
    """Returns the number of mutants that were not found."""
    missed = 0
    for mutant in chosen:
        reason = next((why for words, why in EQUIVALENT.items() if words in mutant.name), None)
        if reason:
            print(f"equivalent       {mutant.name} ({reason})", flush=True)
            continue
        outcome = test(mutant, tests, timeout_s)
        missed += not outcome.failed
        word = "found" if outcome.failed else "MISSED"
        print(f"{word:8} {outcome.seconds:5.0f} s  {mutant.name}  {outcome.why}".rstrip(), flush=True)
    return missed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="parts of names; all of them must be in a mutant's name")
    parser.add_argument(
        "--tests",
        nargs="+",
        default=list(TESTS),
        help="files or names of tests, if it is known which of them must find it",
    )
    parser.add_argument("--list", action="store_true", help="only names them")
    parser.add_argument(
        "--timeout_s", type=float, help="of the tests of one mutant; default: from their time without a mutant"
    )
    options = parser.parse_args()
    chosen = [mutant for mutant in all_mutants() if all(word in mutant.name for word in options.words)]
    if options.list or not chosen:
        print("\n".join(mutant.name for mutant in chosen) or "mutants: no wait has these words")
        return not chosen
    subprocess.run(
        [ROOT / "tools" / "build.sh", BUILD, "zeropage_python", "zeropage_cli", "simulated_device"], check=True
    )
    build(chosen)
    unchanged = test(None, options.tests, UNCHANGED_TIMEOUT_S)
    if unchanged.failed:
        raise SystemExit(
            f"mutants: the tests fail with nothing removed ({unchanged.why}); see {MADE / 'unchanged.log'}"
        )
    print(f"mutants: {len(chosen)}; the tests pass unchanged, in {unchanged.seconds:.0f} s", flush=True)
    missed = try_all(chosen, options.tests, options.timeout_s or 3 * unchanged.seconds + 60)
    print(f"mutants: {missed} of {len(chosen)} missed")
    return missed > 0


if __name__ == "__main__":
    sys.exit(main())
