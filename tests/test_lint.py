"""The checks of `make lint` that are programs of our own."""

import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

import check_tests
import tidy

TESTS = '''
def test_silent(): ...
def test_vague():
    """Checks that the sum is right."""
def test_good():
    """Would catch a wrong sum."""
def helper(): ...
class TestGroup:
    def test_inside(self): ...
'''


def test_tests_that_do_not_say_what_they_catch_are_named():
    """Catches a check that lets through a test without a docstring or with one that names no fault, also in classes."""
    assert check_tests.silent_python_tests(TESTS) == [(2, "test_silent"), (3, "test_vague"), (9, "test_inside")]


FAULT = """#include <string>
#include <utility>
std::string doubled(std::string text) {
  const std::string first = std::move(text);
  return first + text;
}
"""


def test_clang_tidy_gets_what_clang_knows():
    """Catches flags of g++, or its precompiled headers, with which clang would fail on every file."""
    command = (
        r"/usr/bin/c++ -DA=\"1.2\" -I/r -isystem /t/include -O3 -fPIC -Wall -fpch-preprocess -std=c++20 "
        "-include /b/cmake_pch.hxx -o x.o -c /r/x.cc"
    )
    assert tidy.clang_arguments(command) == ['-DA="1.2"', "-I/r", "-isystem", "/t/include", "-std=c++20"]


def test_a_header_is_checked_through_a_file_that_includes_it():
    """Catches a changed header that no file of the build stands for, and one that is left out in silence."""
    commands: tidy.Commands = {name: ("", []) for name in ("zeropage/base/log.cc", "zeropage/base/exit_code_test.cc")}
    assert tidy.units_of("zeropage/base/log.h", commands) == ["zeropage/base/log.cc"]
    assert tidy.units_of("zeropage/base/exit_code.h", commands) == ["zeropage/base/exit_code_test.cc"]
    assert tidy.units_of("zeropage/base/error.h", commands) == ["zeropage/base/exit_code_test.cc"]
    assert tidy.units_of("zeropage/nowhere.h", commands) == []


def test_clang_tidy_finds_a_fault(tmp_path, monkeypatch, capsys):
    """Catches a lint that finds nothing: a tool or list of checks that does not run, a fault that is reported once and
    then remembered as clean, and files that are left out in silence when the time is over."""
    monkeypatch.setattr(tidy, "CLEAN", tmp_path / "build" / "tidy.json")
    shutil.copy(tidy.ROOT / ".clang-tidy", tmp_path)
    name = str(tmp_path / "fault.cc")
    commands = {name: (str(tmp_path), ["-std=c++20"])}
    Path(name).write_text(FAULT)
    for _ in range(2):
        assert tidy.check([name], commands, 60) == 1
        assert "bugprone-use-after-move" in capsys.readouterr().err
    assert tidy.check([name], commands, -1) == 0
    assert "1 files were left out" in capsys.readouterr().out
    Path(name).write_text(FAULT.replace("first + text", "first"))
    assert tidy.check([name], commands, 60) == 0
    assert "1 changed files, none with findings" in capsys.readouterr().out
