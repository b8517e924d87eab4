"""The time from the launch command to the first line of a script, compared with plain python and torchrun.

There is one rank on this host, and the systems alternate. The target is 0.3 s more than `python script.py`.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import emit

BIN = Path(sys.executable).parent


def start_s(command: list[str], script: str) -> float:
    """Seconds until the script's first statement has run, by the clock that all processes share."""
    started = time.monotonic()
    done = subprocess.run(
        [*command, script], capture_output=True, text=True, check=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    )
    return float(done.stdout.split()[-1]) - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    zeropage = os.environ.get("ZEROPAGE_COMMAND") or str(BIN / "zeropage")
    systems = {"python": [sys.executable], "zeropage": [zeropage, "-q"]}
    if (BIN / "torchrun").exists() or shutil.which("torchrun"):
        systems["torchrun"] = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=1", "--master_port=0"]
    times: dict[str, list[float]] = {name: [] for name in systems}
    with tempfile.TemporaryDirectory() as folder:
        script = str(Path(folder) / "script.py")
        Path(script).write_text("import time\nprint(time.monotonic())\n")
        for _ in range(rounds):
            for name, command in systems.items():
                times[name].append(start_s(command, script))
    medians = {name: statistics.median(values) for name, values in times.items()}
    over = {
        f"{name}_over_python_s": round(medians[name] - medians["python"], 4) for name in systems if name != "python"
    }
    emit("launch", rounds=rounds, **{f"{name}_s": round(value, 4) for name, value in medians.items()}, **over)


if __name__ == "__main__":
    main()
