"""Peak memory of a rank while a 100M-parameter GPT trains in fp32 on 2 ranks, compared with DDP with fused AdamW.

Every system runs in fresh processes, from the import of torch to the last step, and the systems alternate. Another
process samples the ranks' PSS (memory shared by k processes counts 1/k) from smaps_rollup; VmHWM, which counts shared
memory in full for each process, is also shown. The batch is small, so model state dominates. A ratio below 1 means that
ours needs less.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from common import emit, is_rank, start_ranks

PEER = "DDP"
TARGETS = {
    "stage 0": None,
    "stage 1": 0.85,
    "stage 2": 0.80,
    "stage 3": None,
    "stage 3, a quarter live": 0.75,
    "FSDP2": None,
}
SAMPLE_S = 0.005


def train(name: str, model: str, steps: int, done: str) -> None:
    """One rank of one system. Creates a file in the folder `done` after training, and waits to be killed."""
    import systems
    import torch.distributed as dist

    config = systems.MODELS[model]
    peers = {"DDP": systems.ddp, "FSDP2": systems.fsdp2}
    if name in peers:
        dist.init_process_group("gloo")
        make = peers[name]
    else:
        quarter = systems.live_quarter(config) if "quarter" in name else None
        make = partial(systems.engine, stage=int(name.split()[1].rstrip(",")), zero=quarter)
    step = make(config, systems.batch_of(config, rows=1))
    for _ in range(steps):
        step()
    # Shared memory counts in full for the last rank alive, so no rank may end before the sampling does.
    Path(done, os.environ["RANK"]).touch()
    signal.pause()


def field_kb(path: Path, field: str) -> int:
    """The value of `field` in a file of /proc, 0 when the process is gone."""
    try:
        for line in path.read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1])
    except (OSError, ProcessLookupError):
        pass
    return 0


def sample_peaks(ranks: list[subprocess.Popen], done: str) -> tuple[int, int]:
    """Samples until all ranks have trained. Returns the peak PSS and VmHWM, in bytes, of the rank with the largest."""
    pss_kb = [0] * len(ranks)
    hwm_kb = [0] * len(ranks)
    while len(os.listdir(done)) < len(ranks):
        if any(rank.poll() is not None for rank in ranks):
            raise SystemExit("a rank failed; its message is above")
        for i, rank in enumerate(ranks):
            folder = Path(f"/proc/{rank.pid}")
            pss_kb[i] = max(pss_kb[i], field_kb(folder / "smaps_rollup", "Pss:"))
            hwm_kb[i] = max(hwm_kb[i], field_kb(folder / "status", "VmHWM:"))
        time.sleep(SAMPLE_S)
    return max(pss_kb) * 1024, max(hwm_kb) * 1024


def peaks_of(name: str, size: int) -> tuple[int, int]:
    """Peak PSS and VmHWM of one run of a system."""
    with tempfile.TemporaryDirectory() as done:
        ranks = start_ranks(size, [*sys.argv[1:], "--train", name, done])
        try:
            return sample_peaks(ranks, done)
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="100M")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--systems", nargs="+", default=list(TARGETS), choices=TARGETS)
    parser.add_argument("--train", nargs=2, help=argparse.SUPPRESS)  # the arguments of a rank
    arguments = parser.parse_args()
    if is_rank():
        name, done = arguments.train
        train(name, arguments.model, arguments.steps, done)
        return
    peaks: dict[str, list[tuple[int, int]]] = {}
    for _ in range(arguments.rounds):
        for name in [PEER, *arguments.systems]:
            peaks.setdefault(name, []).append(peaks_of(name, arguments.ranks))
    pss, hwm = ({name: min(peak[i] for peak in of_name) for name, of_name in peaks.items()} for i in range(2))
    for name in peaks:
        emit(
            "peak_memory",
            model=arguments.model,
            ranks=arguments.ranks,
            ours=name,
            peer=PEER,
            ratio=round(pss[name] / pss[PEER], 3),
            pss_mib=pss[name] >> 20,
            vm_hwm_mib=hwm[name] >> 20,
            target=TARGETS.get(name),
        )


if __name__ == "__main__":
    main()
