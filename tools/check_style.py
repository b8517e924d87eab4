"""Checks the format of the C++ files and the length of all files; --width: also the length of lines of comments,
docstrings and Markdown.

check_style.py CLANG_FORMAT [--width] [--fix]; --fix corrects everything except the length of files.
"""

import subprocess
import sys
from pathlib import Path

import wrap

ROOT = Path(__file__).resolve().parent.parent
MAX_LINES = 500
SOURCES = {".h", ".cc"}
COUNTED = SOURCES | {".py", ".sh", ".cmake"}
TEXTS = COUNTED | {".cu", ".md"}
GENERATED = {"docs/config.md"}


def tracked() -> list[Path]:
    """Files of the project: those that git tracks, and new files that it does not ignore."""
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return [ROOT / name for name in sorted(set(names.split("\0"))) if name and (ROOT / name).is_file()]


def main() -> int:
    clang_format, fix = sys.argv[1], "--fix" in sys.argv[2:]
    files = tracked()
    problems = []
    for path in files:
        if path.suffix in COUNTED and (lines := len(path.read_text().splitlines())) > MAX_LINES:
            problems.append(
                f"{path.relative_to(ROOT)}: {lines} lines; a file has at most {MAX_LINES}: split it by what its parts do"
            )
        if path.suffix not in TEXTS or str(path.relative_to(ROOT)) in GENERATED:
            continue
        if fix:
            wrap.wrap(path)
        elif "--width" in sys.argv and (long := wrap.long_lines(path)):
            problems.append(f"{path.relative_to(ROOT)}:{long[0]}: text beyond {wrap.WIDTH} columns: run `make format`")
    sources = [str(p) for p in files if p.suffix in SOURCES]
    command = [clang_format, "-i"] if fix else [clang_format, "--dry-run", "--Werror", "--ferror-limit=1"]
    done = subprocess.run([*command, *sources], capture_output=True, text=True) if sources else None
    if done and done.returncode:
        problems.append(done.stderr.strip() + "\nformat: run `make format`")
    print("\n".join(problems) if problems else f"style: {len(files)} files have the right format and length")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
