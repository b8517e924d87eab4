"""The checks of `make lint` that are programs of our own."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

import check_tests

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
