"""`python -m zeropage alias`: lets programs that import `deepspeed` get the package in this folder, or undoes that.

- `python -m zeropage alias install` adds a distribution of that name to this Python, and the commands deepspeed and ds.
- `python -m zeropage alias remove` removes them (so does pip uninstall deepspeed).
- `python -m zeropage alias status` prints which one is active.

The distribution is a path file, metadata for programs that read the version with importlib.metadata, and the list of
its files. It never replaces DeepSpeed itself.
"""

import argparse
import importlib.metadata
import os.path
import sys
from pathlib import Path

from ..errors import UsageError

VERSION = "0.18.9"  # of DeepSpeed; libraries compare it with the version that they need
FOLDER = (
    Path(__file__).resolve().parent
)  # on the import path: `import deepspeed` then finds the folder next to this file

_DIST_INFO = f"deepspeed-{VERSION}.dist-info"
_PATH_FILE = "zeropage_deepspeed.pth"
_COMMANDS = ("deepspeed", "ds")
_INSTALLER = "zeropage"
_METADATA = f"""Metadata-Version: 2.1
Name: deepspeed
Version: {VERSION}
Summary: The names of DeepSpeed, provided by zeropage Requires-Dist: zeropage
"""
_SCRIPT = """#!/bin/sh
exec "$(dirname "$0")/zeropage" "$@"
"""


def active() -> str:
    """The package that `import deepspeed` finds: "alias", "deepspeed", or "" for none."""
    try:
        found = importlib.metadata.distribution("deepspeed")
    except importlib.metadata.PackageNotFoundError:
        return ""
    return "alias" if (found.read_text("INSTALLER") or "").strip() == _INSTALLER else "deepspeed"


def write_metadata(folder: Path) -> Path:
    """Writes the distribution's metadata into a folder of the import path; returns its own folder there."""
    info = folder / _DIST_INFO
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text(_METADATA)
    (info / "INSTALLER").write_text(_INSTALLER + "\n")
    return info


def install() -> str:
    """Installs into the Python that runs this. Raises UsageError if DeepSpeed itself is installed."""
    import sysconfig  # here, because programs that import deepspeed need none of it

    if active() == "deepspeed":
        version = importlib.metadata.version("deepspeed")
        raise UsageError(
            f"DeepSpeed {version} is installed here, and is not replaced: pip uninstall deepspeed first, or use another environment"
        )
    site, scripts = Path(sysconfig.get_path("purelib")), Path(sysconfig.get_path("scripts"))
    (site / _PATH_FILE).write_text(f"{FOLDER}\n")
    info = write_metadata(site)
    for name in _COMMANDS:
        (scripts / name).write_text(_SCRIPT)
        (scripts / name).chmod(0o755)
    files = [
        site / _PATH_FILE,
        info / "METADATA",
        info / "INSTALLER",
        info / "RECORD",
        *(scripts / name for name in _COMMANDS),
    ]
    (info / "RECORD").write_text("".join(f"{os.path.relpath(file, site)},,\n" for file in files))
    return f"programs that import deepspeed {VERSION} get zeropage in {sys.prefix}"


def remove() -> str:
    """Undoes `install`. Raises UsageError when the alias is not installed."""
    if active() != "alias":
        raise UsageError(f"the alias is not installed in {sys.prefix}")
    found = importlib.metadata.distribution("deepspeed")
    files = [Path(str(found.locate_file(file))) for file in found.files or ()]
    for file in files:
        file.unlink(missing_ok=True)
    for folder in {file.parent for file in files if file.parent.name == _DIST_INFO}:
        folder.rmdir()
    return f"programs that import deepspeed find none in {sys.prefix}"


def status() -> str:
    strings = {
        "": "there is no package deepspeed",
        "alias": f"deepspeed {VERSION} is zeropage's",
        "deepspeed": "deepspeed is DeepSpeed itself",
    }
    return f"{strings[active()]} in {sys.prefix}"


def main(arguments: list[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m zeropage alias", description="Lets programs that import deepspeed run on zeropage."
    )
    commands = {"install": install, "remove": remove, "status": status}
    parser.add_argument("command", choices=commands)
    print(f"zeropage: {commands[parser.parse_args(arguments).command]()}")
    return 0
