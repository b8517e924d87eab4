"""Checks that tests say what they catch: each Python test in its docstring, each file of C++ tests in a comment."""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SAYS = re.compile(r"\b[Cc]atch(es)?\b")
COMMENT = re.compile(r"^\s*//.*", re.MULTILINE)


def silent_python_tests(text: str) -> list[tuple[int, str]]:
    """Line and name of the tests of a Python file whose docstrings do not say what they catch."""
    return [
        (node.lineno, node.name)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and not SAYS.search(ast.get_docstring(node) or "")
    ]


def main() -> int:
    python = sorted(ROOT.glob("tests/**/test_*.py"))
    cpp = sorted(ROOT.glob("zeropage/**/*_test.cc"))
    problems = [
        f"{path.relative_to(ROOT)}:{line}: {name} has no docstring that says what it catches (Catches ...)"
        for path in python
        for line, name in silent_python_tests(path.read_text())
    ]
    problems += [
        f"{path.relative_to(ROOT)}: no comment says what its tests catch (Catches ...)"
        for path in cpp
        if not SAYS.search("\n".join(COMMENT.findall(path.read_text())))
    ]
    print("\n".join(problems) if problems else f"tests: {len(python) + len(cpp)} files say what they catch")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
