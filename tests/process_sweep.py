"""Kills and stops processes, fills disks, and starts jobs again, at random from a seed; compares the losses with plain
PyTorch's (tests/test_process_sweep.py).

1. This process imports torch and the package once. Each rank is a fork of it, which costs a twentieth of a new process.
2. A job is two ranks at a random stage that train, save every step, and write a log: each loss, and each save that has
   returned.
3. Something happens to it at a random moment (`DISTURBANCES`). Then the job is started again, undisturbed, until it has
   all its steps. Undisturbed jobs measure how busy the machine is: all timeouts grow with their time.
4. Every loss in every log equals plain PyTorch's of that step. A restart resumes from the last save that had returned
   on all ranks, or a later one. The error of a run that ends early names a rank, a path or a signal. Afterwards there
   is no process, no name in /dev/shm, and no other file is changed.

python process_sweep.py SEED SECONDS FOLDER
"""

import contextlib
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import torch
from processes import free_port
from training import config_of, part_of_batch, small_net, token_batch

import zeropage

STEPS = 8
WORLD = 2
TIMEOUT_MS = 1500
END_S = 30.0
QUIET_S = 3.0  # more than an undisturbed job takes on a machine with nothing else to do
SLOWEST = 8.0  # how many times as long it may take on a busy one
DISTURBANCES = ("nothing", "kill one", "kill both", "stop one", "end one", "fill the disk")


def plain_losses() -> list[list[float]]:
    """The losses of one process without the package, by step and rank: each rank's loss is of its own part of the
    batch."""
    model = small_net(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.01)
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        with torch.no_grad():
            losses.append([model(*part_of_batch(token_batch(step), WORLD, rank)).item() for rank in range(WORLD)])
        model(*token_batch(step)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
    return losses


def train(rank: int, folder: Path, stage: int, timeout_ms: int, fill_at: int) -> None:
    """The program of a rank. fill_at: from this step on no file can grow to the size that a save needs."""
    own = {"timeout_ms": timeout_ms, "metrics_file": str(folder / "run.jsonl")}
    engine, *_ = zeropage.initialize(model=small_net(0), config=config_of(stage, zeropage=own))
    engine.load_checkpoint(folder / "ckpt")
    with open(folder / f"log{rank}", "a", buffering=1) as log:
        log.write(f"from {engine.global_steps}\n")
        for step in range(engine.global_steps, STEPS):
            if step == fill_at:
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
            loss = engine(*part_of_batch(token_batch(step), WORLD, rank))
            engine.backward(loss)
            engine.step()
            log.write(f"loss {step} {loss.item():.9g}\n")
            engine.save_checkpoint(folder / "ckpt")
            log.write(f"saved {engine.global_steps}\n")


def start(rank: int, folder: Path, stage: int, timeout_ms: int, meeting: dict[str, str], fill_at: int = -1) -> int:
    """Starts a rank; its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.environ |= {**meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        descriptor = os.open(folder / f"err{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(descriptor, 2)
        train(rank, folder, stage, timeout_ms, fill_at)
        code = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(code)


def wait_for(children: dict[int, int], seconds: float) -> dict[int, int]:
    """The wait statuses, by rank, of the children (by process id) that end in time."""
    ended: dict[int, int] = {}
    end = time.monotonic() + seconds
    while len(ended) < len(children) and time.monotonic() < end:
        for pid, rank in children.items():
            if rank not in ended:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    ended[rank] = status
        time.sleep(0.005)
    return ended


@dataclass
class Trial:
    """One job, from its first start to its last step."""

    folder: Path
    stage: int
    random: random.Random
    expected: list[list[float]]
    slowness: float  # how many times as long as on a quiet machine all may take

    def run(self, disturbance: str) -> None:
        (self.folder / "ckpt").mkdir(parents=True)
        (self.folder / "ckpt" / "letter.txt").write_text("not ours")
        (self.folder / ".other.tmp").write_text("not ours")
        self.disturb(disturbance)
        acknowledged = self.check_logs()
        self.finish(disturbance)
        assert self.check_logs() == STEPS, [self.lines(rank) for rank in range(WORLD)]
        starts = [int(line.split()[1]) for line in self.lines(0) if line.startswith("from")]
        assert starts[-1] >= acknowledged, f"saved {acknowledged}, but the next start resumed from {starts}"
        assert (self.folder / "ckpt" / "letter.txt").read_text() == "not ours"
        assert (self.folder / ".other.tmp").read_text() == "not ours"

    def disturb(self, disturbance: str) -> None:
        fill_at = self.random.randrange(STEPS) if disturbance == "fill the disk" else -1
        children = self.start_ranks(fill_at)
        victim = self.random.randrange(WORLD)
        pids = {rank: pid for pid, rank in children.items()}
        if disturbance.split()[0] in ("kill", "stop", "end"):
            time.sleep(self.random.uniform(0.0, 1.2) * self.slowness)
            number = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "end": signal.SIGTERM}[disturbance.split()[0]]
            for rank in pids if disturbance == "kill both" else [victim]:
                os.kill(pids[rank], number)
        ended = wait_for(
            {pid: rank for pid, rank in children.items() if disturbance != "stop one" or rank != victim}, self.end_s
        )
        if disturbance == "stop one":
            with contextlib.suppress(ProcessLookupError):
                os.kill(pids[victim], signal.SIGKILL)
            ended |= wait_for({pids[victim]: victim}, self.end_s)
        for pid, rank in children.items():
            if rank not in ended:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        assert len(ended) == WORLD, f"ranks {set(range(WORLD)) - set(ended)} had not ended after {self.end_s} s"
        for rank, status in ended.items():
            if os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0:
                self.check_error(rank, disturbance)
        if disturbance == "nothing":
            assert not any(ended.values()), self.errors()

    def finish(self, disturbance: str) -> None:
        ended = wait_for(self.start_ranks(), self.end_s)
        assert len(ended) == WORLD and not any(ended.values()), (
            f"started again after {disturbance}: {ended} {self.errors()}"
        )

    def start_ranks(self, fill_at: int = -1) -> dict[int, int]:
        meeting = {
            "WORLD_SIZE": str(WORLD),
            "LOCAL_WORLD_SIZE": str(WORLD),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
            "ZEROPAGE_JOB_TOKEN": uuid.uuid4().hex,
        }
        timeout_ms = int(TIMEOUT_MS * self.slowness)
        return {start(rank, self.folder, self.stage, timeout_ms, meeting, fill_at): rank for rank in range(WORLD)}

    @property
    def end_s(self) -> float:
        return END_S * self.slowness

    def check_logs(self) -> int:
        """The last step whose save has returned on all ranks, or from which they have started."""
        saved = []
        for rank in range(WORLD):
            last = 0
            for line in self.lines(rank):
                kind, *values = line.split()
                if kind == "loss" and len(values) == 2:
                    expected = self.expected[int(values[0])][rank]
                    assert abs(float(values[1]) - expected) <= 2e-5 * abs(expected), (
                        f"rank {rank}: {line}, expected {expected}"
                    )
                elif kind in ("from", "saved"):  # a rank may be killed between its last save and the line about it
                    last = int(values[0])
            saved.append(last)
        return min(saved)

    def check_error(self, rank: int, disturbance: str) -> None:
        """The error of an early end has the reason, and names the path or the other rank."""
        text = (self.folder / f"err{rank}").read_text()
        found = re.search(r"^(PeerError|TimeoutError|CheckpointError|IoError): .*", text, re.MULTILINE | re.DOTALL)
        peer = rf"rank(\(s\))? {1 - rank}\b"
        named = rf"{re.escape(str(self.folder))}|{peer}" if disturbance == "fill the disk" else peer
        assert found and re.search(named, found[0]), f"{disturbance}: {text}"

    def lines(self, rank: int) -> list[str]:
        path = self.folder / f"log{rank}"
        whole = path.read_text().rpartition("\n")[0] if path.exists() else ""  # a kill may cut off the last line
        return whole.splitlines()

    def errors(self) -> str:
        return " ".join(path.read_text() for path in sorted(self.folder.glob("err*")))


def leftovers() -> list[str]:
    return sorted(name for name in os.listdir("/dev/shm") if name.startswith(f"zp-{os.getuid()}-"))


def main(seed: int, seconds: float, folder: Path) -> int:
    torch.set_num_threads(1)
    expected = plain_losses()
    before, end, done = leftovers(), time.monotonic() + seconds, 0
    generator = random.Random(seed)
    slowness = SLOWEST
    while time.monotonic() < end or done < len(DISTURBANCES):
        disturbance, stage = DISTURBANCES[done % len(DISTURBANCES)], generator.randrange(4)
        place = folder / str(done)
        trial = Trial(place, stage, random.Random(f"{seed} {done}"), expected, slowness)
        begin = time.monotonic()
        try:
            trial.run(disturbance)
        except AssertionError as error:
            fact = {
                "seed": seed,
                "trial": done,
                "stage": stage,
                "disturbance": disturbance,
                "slowness": slowness,
                "error": str(error),
            }
            print(json.dumps(fact))
            return 1
        took = time.monotonic() - begin
        print(f"trial {done}, stage {stage}, {disturbance}: {took:.1f} s", file=sys.stderr, flush=True)
        if disturbance == "nothing":
            slowness = min(SLOWEST, max(1.0, took / QUIET_S))
        shutil.rmtree(place)
        done += 1
    left = sorted(set(leftovers()) - set(before))
    print(f"{done} trials, left in /dev/shm: {left}")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3])))
