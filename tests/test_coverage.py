"""cmake/coverage.cmake and tools/line_coverage.py: the counts of lines that ran, on a program of one file."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

import line_coverage as coverage

ROOT = Path(__file__).resolve().parent.parent

PROJECT = f"""cmake_minimum_required(VERSION 3.22)
project(counted LANGUAGES CXX)
set(ZEROPAGE_COVERAGE ON)
include({ROOT}/cmake/coverage.cmake)
add_executable(program zeropage/room/program.cc)
"""
PROGRAM = """#include <csignal>
#include <unistd.h>

int twice(int x) {
  if (x == 3) return 0;
  return 2 * x;
}

int main(int argc, char** argv) {
  if (fork() == 0) {
    int sum = twice(1);
    raise(SIGKILL);
    return sum;
  }
  if (argc == 1) _exit(twice(2) == 4 ? 0 : 1);
  raise(SIGTERM);
}
"""


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("counted")
    source = folder / "zeropage" / "room" / "program.cc"
    source.parent.mkdir(parents=True)
    source.write_text(PROGRAM)
    (folder / "CMakeLists.txt").write_text(PROJECT)
    for words in (["-S", folder, "-B", folder / "build", "-G", "Ninja"], ["--build", folder / "build"]):
        done = subprocess.run(["cmake", *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "build"


def test_all_processes_count_and_leave_nothing(build, tmp_path, monkeypatch, capsys):
    """Catches counts that are lost when a process is killed, forks, or ends by _exit, programs that print or write
    files of their own when they end, and a percentage of other lines than those that ran."""
    monkeypatch.setattr(coverage, "ROOT", build.parent)
    monkeypatch.setattr(coverage, "SOURCES", build.parent / "zeropage")
    program = build / "program"
    coverage.forget(build)
    for words, code in (([], 0), ([], 0), (["killed"], -signal.SIGTERM)):
        done = subprocess.run([program, *words], cwd=tmp_path, capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (code, "", "")
    assert list(tmp_path.iterdir()) == [] and list(build.rglob("*.gcda")) == []
    coverage.write_counters(build)
    (lines,) = coverage.gather([build]).values()
    assert {line: lines[line] for line in (4, 5, 6, 11, 12, 15, 16)} == {4: 5, 5: 5, 6: 5, 11: 3, 12: 3, 15: 3, 16: 1}
    assert lines[13] == 0  # nobody comes back from the signal
    monkeypatch.setattr(sys, "argv", ["line_coverage.py", str(build), "--at-least", "95"])
    assert coverage.main() == 1
    said = capsys.readouterr()
    assert "room" in said.out and "but at least 95 % are wanted" in said.err
    assert (build / "coverage.txt").read_text() == "room/program.cc: 13, 17\n"


def test_counts_of_another_version_are_replaced(build):
    """Catches a program that is built again and counts no more, because its counters' file has the old size."""
    coverage.forget(build)
    counters = build / "counters" / "program"
    counters.write_bytes(b"other")
    assert subprocess.run([build / "program"]).returncode == 0
    assert counters.stat().st_size > 5
    counters.write_bytes(b"other")
    coverage.write_counters(build)
    assert not counters.exists() and list(build.rglob("*.gcda")) == []


def test_a_process_that_may_not_write_the_counters_works(build):
    """Catches a test that fails in a build with counters, because its process may not open or enlarge their file."""
    coverage.forget(build)
    shutil.rmtree(build / "counters")
    try:
        done = subprocess.run([build / "program"], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
    finally:
        (build / "counters").mkdir()


def test_a_build_without_counts_is_an_error(build, monkeypatch, capsys):
    """Catches a percentage of a build whose tests did not run."""
    coverage.forget(build)
    monkeypatch.setattr(sys, "argv", ["line_coverage.py", str(build)])
    assert coverage.main() == 1
    assert "has no counters" in capsys.readouterr().err
