"""tools/wrap.py, which `make format` wraps comments, docstrings and Markdown with."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

import wrap

LONG = " ".join(["word"] * 30)
CASES = {
    "paragraph.md": f"- {LONG} 1. end\n  next\n\n```\n{LONG}\n```\n\n| {LONG} |\n",
    "comment.h": f"/// {LONG}\n/// next\nint {'x' * 130};  // {LONG}\n",
    "docstring.py": f'"""{LONG}\n\n    {LONG}\n"""\n\nx = "{LONG}"\n# {LONG}\n',
}


def words(text: str) -> list[str]:
    return [word for word in text.split() if word not in ("///", "#", "//")]


@pytest.mark.parametrize("name", CASES)
def test_text_is_wrapped_and_nothing_else(tmp_path, name):
    """Catches words that are lost or moved, code and tables that are touched, and a second run that changes the file
    again."""
    text = CASES[name]
    file = tmp_path / name
    file.write_text(text)
    assert wrap.long_lines(file) and wrap.wrap(file)
    wrapped = file.read_text()
    assert words(wrapped) == words(text) and not wrap.long_lines(file) and not wrap.wrap(file)
    kept = [line for line in text.split("\n") if line.startswith(("|", "word", "int", "x ="))]
    assert all(line in wrapped.split("\n") for line in kept)
