"""Checks that every room includes only itself and earlier rooms, and torch only where the design permits it; and that
the files named in comments exist."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = "base config layout formula planner io optim comm checkpoint memory paging reduce engine report session cpp launch cli python".split()
TORCH_ROOMS = {"memory", "paging", "reduce", "engine", "session", "cpp", "python"}
# These must not include torch, not even through another room.
TORCH_FREE_ROOMS = {"report", "launch", "cli"}
INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]')
# A file that a comment names, except files of other projects: "fmt/format.h" in angle brackets, "src/graph/tuning.cc".
NAMED = re.compile(r"//.*?(?<![\w*/<-])(?!src/)((?:[a-z0-9_]+/)*[a-z0-9_]+\.(?:h|cc))\b")
OF_OTHERS = {"foreach_target.h"}
TORCH = re.compile(r"^(torch|ATen|c10|caffe2|pybind11)/|^Python\.h$")


def room_of(path: Path) -> str:
    """The room of a file: zeropage/<room>/...; "cpp" for zeropage/zeropage.h, "python" for the bindings."""
    parts = path.relative_to(ROOT).parts
    if parts[0] != "zeropage":
        return "python"
    return parts[1] if len(parts) > 2 else "cpp"


def may_include_torch(path: Path) -> bool:
    room = room_of(path)
    return room in TORCH_ROOMS or (room == "comm" and "c10d" in path.parts)


def problem(path: Path, included: str) -> str | None:
    """The error in this include of this file, or None."""
    room = room_of(path)
    if TORCH.match(included):
        return None if may_include_torch(path) else f"room {room} must not include torch"
    match = re.match(r"zeropage/([^/]+)/", included)
    if not match:
        return None
    other = match.group(1)
    if other not in ROOMS:
        return f"the room {other} does not exist"
    if ROOMS.index(other) > ROOMS.index(room):
        return f"room {room} comes before {other} and must not include it"
    if room in TORCH_FREE_ROOMS and other in TORCH_ROOMS:
        return f"room {room} must not include torch, and {other} may"
    if included.startswith("zeropage/comm/c10d/") and not may_include_torch(path):
        return f"room {room} must not include torch, and {included} does"
    return None


def missing_file(line: str, names: set[str]) -> str | None:
    """The error if the comment of this line names a missing file, or None."""
    match = NAMED.search(line)
    name = match and match.group(1).rpartition("/")[2]
    return f"there is no file {name}" if name and name not in names | OF_OTHERS else None


def main() -> int:
    files = [
        p
        for folder in ("zeropage", "python/bind")
        for p in sorted((ROOT / folder).rglob("*"))
        if p.suffix in (".h", ".cc")
    ]
    names = {path.name for path in files} | {path.name for path in (ROOT / "tests").rglob("*.[hc]*")}
    problems = []
    for path in files:
        if room_of(path) not in ROOMS:
            problems.append(
                f"{path.relative_to(ROOT)}: {room_of(path)} is not a room; the rooms are {', '.join(ROOMS)}"
            )
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            match = INCLUDE.match(line)
            if match and (found := problem(path, match.group(1))):
                problems.append(f"{path.relative_to(ROOT)}:{number}: {match.group(1)}: {found}")
            if missing := missing_file(line, names):
                problems.append(f"{path.relative_to(ROOT)}:{number}: {missing}")
    print("\n".join(problems) if problems else f"layers: {len(files)} files follow the order of the rooms")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
