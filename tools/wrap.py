"""Wraps comments, docstrings and paragraphs of Markdown at the project's width. Used by check_style.py.

The last words of a line that is too long move to the next line of the same paragraph, or to a new line. Words and their
order do not change; everything but plain text (code, tables, links to pictures, headings) is left unchanged.
"""

import ast
import re
from pathlib import Path

WIDTH = 120
COMMENT = re.compile(r"\s*(//[/!]?<?|#)\s+")
ITEM = re.compile(r"([-*+]|\d+\.)\s+|\\\w+|@\w+|[\w.`/]+:\s")
FENCE = re.compile(r"\s*(```|~~~)")


def indent_of(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]


def _markdown_prefix(line: str, in_fence: bool) -> str | None:
    if (
        in_fence
        or not line.strip()
        or line.lstrip().startswith(("|", "#", "!", "[", "<", ">"))
        or line.startswith("    ")
    ):
        return None
    return indent_of(line)


def _docstring_lines(text: str) -> set[int]:
    """Indices of the lines of docstrings."""
    found: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and ast.get_docstring(
            node, clean=False
        ):
            found.update(range(node.body[0].lineno - 1, node.body[0].end_lineno or 0))
    return found


def prefixes(path: Path, lines: list[str]) -> list[str | None]:
    """For each line the prefix of its paragraph's lines ("", "    ", "/// "), or None for a line that is not text."""
    result: list[str | None] = []
    if path.suffix == ".md":
        in_fence = False
        for line in lines:
            in_fence ^= bool(FENCE.match(line))
            result.append(_markdown_prefix(line, in_fence) if not FENCE.match(line) else None)
        return result
    docstrings = _docstring_lines("\n".join(lines)) if path.suffix == ".py" else set()
    for number, line in enumerate(lines):
        if number in docstrings:
            result.append(indent_of(line) if line.strip() else None)
        else:
            match = COMMENT.match(line)
            result.append(match[0] if match else None)
    return result


def long_lines(path: Path) -> list[int]:
    """Numbers, from 1, of the lines of text that are longer than WIDTH and can be broken."""
    lines = path.read_text().split("\n")
    return [
        n for n, (line, prefix) in enumerate(zip(lines, prefixes(path, lines), strict=True), 1) if _split(line, prefix)
    ]


def _split(line: str, prefix: str | None) -> tuple[str, str] | None:
    """The part that stays on the line and the rest, or None if the line is not too long or cannot be broken."""
    if prefix is None or len(line) <= WIDTH:
        return None
    text = line[len(prefix) :]
    marker = re.match(r'([-*+]|\d+\.)\s+|"""', text)
    at = line.rfind(" ", 0, WIDTH + 1)
    # No line of a paragraph may begin with what Markdown reads as an item or a heading.
    while at > 0 and re.match(r"([-*+#]|\d+\.)\s", line[at + 1 :]):
        at = line.rfind(" ", 0, at)
    if at <= len(prefix) + (marker.end() if marker else 0):
        return None
    return line[:at].rstrip(), line[at + 1 :]


def wrap(path: Path) -> bool:
    """Wraps the text of a file. Returns whether that changed it."""
    before = path.read_text()
    lines = before.split("\n")
    kinds = prefixes(path, lines)
    number = 0
    while number < len(lines):
        line, prefix = lines[number], kinds[number]
        parts = _split(line, prefix)
        if parts and prefix is not None:
            lines[number], rest = parts
            item = re.match(r"([-*+]|\d+\.)\s+", line[len(prefix) :])
            following = prefix + " " * (item.end() if item else 0)
            next_line = lines[number + 1] if number + 1 < len(lines) else ""
            joins = (
                number + 1 < len(lines)
                and (next_prefix := kinds[number + 1]) is not None
                and next_prefix.rstrip() == following.rstrip()
                and len(next_prefix) == len(following)
                and not ITEM.match(next_line[len(following) :])
                and not next_line.strip().startswith('"""')
            )
            if joins:
                lines[number + 1] = f"{following}{rest} {next_line[len(following) :]}"
            else:
                lines.insert(number + 1, following + rest)
                kinds.insert(number + 1, following)
        number += 1
    after = "\n".join(lines)
    if after != before:
        path.write_text(after)
    return after != before
