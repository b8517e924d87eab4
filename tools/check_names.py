"""Checks that files of one folder define different names in their anonymous namespaces. The build compiles several
files of a folder at once (cmake/compile_time.cmake), and a function of one file would otherwise be an overload in
another."""

import re
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("zeropage", "python/bind", "tests/simulated_device")
CONSTANT = re.compile(r"(?:static |inline )?(?:constexpr|const) .*?\b(k[A-Z]\w*)\b")
CLASS = re.compile(r"(?:struct|class|enum class|enum) (\w+)")
FUNCTION = re.compile(r"(?!using |namespace )(?:\[\[\w+\]\] )?[\w:<>,&*\[\] ]*?[\w>&*] ?[ &*](\w+)\((?:[^;]*$|.*\{)")


def local_names(text: str) -> set[str]:
    """What the anonymous namespaces of a file define, in the project's format: one definition begins each line without
    indentation."""
    names = set()
    inside = False
    for line in text.splitlines():
        if line.startswith("namespace {"):
            inside = True
        elif line.startswith("}  // namespace"):
            inside = False
        elif (
            inside
            and not line[:1].isspace()
            and (match := CONSTANT.match(line) or CLASS.match(line) or FUNCTION.match(line))
        ):
            names.add(match.group(1))
    return names


def main() -> int:
    files: dict[tuple[Path, bool, str], list[str]] = defaultdict(list)
    count = 0
    for path in sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.cc")):
        is_test = path.stem.endswith("_test")
        if path.stem.endswith("_main") or (path.parent.name == "optim" and not is_test):  # compiled alone
            continue
        count += 1
        for name in local_names(path.read_text()):
            files[path.parent, is_test, name].append(path.name)
    problems = [
        f"{folder.relative_to(ROOT)}: {name} is in the anonymous namespaces of {', '.join(found)}; give it another name in each"
        for (folder, _, name), found in files.items()
        if len(found) > 1
    ]
    print("\n".join(problems) if problems else f"names: {count} files define different names")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
