"""The store compared with fio: io_uring, direct, registered buffers and files, the same block and depth, on the store's
own pre-written file.

fio's buffers are on ordinary pages and, if the system has reserved huge pages (vm.nr_hugepages), also on huge pages
like the store's. The sides alternate. A round is: the store writes everything (both slots), fio reads, the store reads,
fio writes. The target is 0.95 of fio's rates. Needs fio; without it the bench prints a message and compares nothing.

Then the pipeline of an update: the times of reading, updating and writing alone, and together. On a drive that cannot
read and write at full speed at once, the pipeline is limited by the time of both together; the target is 0.9 of the
longest part.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from common import emit

EXTENT_BYTES = 16 << 20


@dataclass(frozen=True)
class Rate:
    bytes_per_s: float
    cpu_s_per_gb: float


class Store:
    """The program bench_nvme."""

    def __init__(self, program: str, folder: str, block: int, depth: int, extents: int):
        command = [program, folder, str(block), str(depth), str(extents)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._commands, self._results = self._process.stdin, self._process.stdout
        self.path, self.how = self._line().split(maxsplit=1)

    def _line(self) -> str:
        line = self._results.readline()
        if not line:
            raise SystemExit("bench_nvme failed; its message is above")
        return line.strip()

    def run(self, traffic: str) -> Rate:
        self._commands.write(traffic + "\n")
        moved, seconds, cpu = (float(word) for word in self._line().split())
        return Rate(moved / seconds, cpu / moved * 1e9)

    def pipeline(self) -> dict[str, float]:
        """Seconds of one pass."""
        self._commands.write("pipeline\n")
        return dict(
            zip(
                ("read", "update", "write", "read and write", "pipelined"),
                map(float, self._line().split()),
                strict=True,
            )
        )

    def close(self) -> None:
        self._commands.close()
        self._process.wait(timeout=60)


def free_huge_pages() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("HugePages_Free"))


def run_fio(path: str, traffic: str, block: int, depth: int, size: int, huge: bool = False) -> Rate:
    """One pass of fio over the file. huge: with buffers on huge pages."""
    command = [
        "fio",
        "--name=bench",
        f"--filename={path}",
        "--ioengine=io_uring",
        "--direct=1",
        "--fixedbufs=1",
        "--registerfiles=1",
    ]
    command += [
        f"--rw={traffic}",
        f"--bs={block}",
        f"--iodepth={depth}",
        f"--size={size}",
        "--allow_file_create=0",
        "--output-format=json",
    ]
    command += ["--iomem=shmhuge"] * huge
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    job = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
    seconds = job[traffic]["runtime"] / 1000
    moved = job[traffic]["io_bytes"]
    cpu = (job["usr_cpu"] + job["sys_cpu"]) / 100 * seconds
    return Rate(moved / seconds, cpu / moved * 1e9)


def quartiles(values: list[float]) -> list[float]:
    return [round(value, 3) for value in statistics.quantiles(values, n=4)[::2]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--block", type=int, default=1 << 20)
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--size_mib", type=int, default=512, help="bytes of one pass")
    parser.add_argument("--folder", default=None, help="a folder on the drive; default: a temporary folder")
    parser.add_argument("--program", default=str(Path(__file__).resolve().parent.parent / "build/dev/bench_nvme"))
    options = parser.parse_args()
    size = options.size_mib << 20
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        store = Store(options.program, folder, options.block, options.depth, size // EXTENT_BYTES)
        if shutil.which("fio") is None:
            print("nvme: fio is not installed (Debian: fio); nothing to compare with", file=sys.stderr)
        else:
            compare(store, options, size)
        measure_pipeline(store, options.rounds)
        store.close()


def compare(store: Store, options: argparse.Namespace, size: int) -> None:
    sides = [False] + [True] * (free_huge_pages() * (2 << 20) >= 2 * options.block * options.depth)
    found: dict[tuple[str, bool], list[tuple[Rate, Rate]]] = {
        (traffic, huge): [] for traffic in ("read", "write") for huge in sides
    }
    for _ in range(options.rounds):
        for huge in sides:
            ours = {"write": [store.run("write"), store.run("write")][1]}
            theirs = {"read": run_fio(store.path, "read", options.block, options.depth, size, huge)}
            ours["read"] = store.run("read")
            theirs["write"] = run_fio(store.path, "write", options.block, options.depth, size, huge)
            for traffic in ours:
                found[traffic, huge].append((ours[traffic], theirs[traffic]))
    for (traffic, huge), pairs in found.items():
        ratios = [ours.bytes_per_s / fio.bytes_per_s for ours, fio in pairs]
        best = [max(rate.bytes_per_s for rate in side) for side in zip(*pairs, strict=True)]
        cpu = [statistics.median(rate.cpu_s_per_gb for rate in side) for side in zip(*pairs, strict=True)]
        emit(
            f"nvme_{traffic}",
            rounds=options.rounds,
            how=store.how,
            block=options.block,
            depth=options.depth,
            fio_huge_pages=huge,
            ratio=round(statistics.median(ratios), 3),
            ratio_quartiles=quartiles(ratios),
            ratio_of_best=round(best[0] / best[1], 3),
            gb_per_s=round(best[0] / 1e9, 2),
            fio_gb_per_s=round(best[1] / 1e9, 2),
            cpu_s_per_gb=round(cpu[0], 4),
            fio_cpu_s_per_gb=round(cpu[1], 4),
        )


def measure_pipeline(store: Store, rounds: int) -> None:
    store.pipeline()  # the first pass allocates its pages
    passes = [store.pipeline() for _ in range(rounds)]
    efficiencies = [
        max(seconds["read"], seconds["update"], seconds["write"]) / seconds["pipelined"] for seconds in passes
    ]
    of_drive = [max(seconds["read and write"], seconds["update"]) / seconds["pipelined"] for seconds in passes]
    emit(
        "nvme_pipeline",
        rounds=rounds,
        efficiency=round(statistics.median(efficiencies), 3),
        efficiency_quartiles=quartiles(efficiencies),
        efficiency_of_this_drive=round(statistics.median(of_drive), 3),
        efficiency_of_this_drive_quartiles=quartiles(of_drive),
        seconds={part: round(statistics.median(seconds[part] for seconds in passes), 4) for part in passes[0]},
    )


if __name__ == "__main__":
    main()
