"""A training that is killed or stopped, whose disk is full or whose files are damaged, at random; it is started again
each time, at another stage and tier.

Expected are the bits that an undisturbed run has after every step; plain PyTorch confirms its losses. Every start
either resumes bit-identically from the last acknowledged step (or the one after it, when the process was killed before
the acknowledgement), or is refused with the path of the damaged file; then `allow_fallback` resumes from the newest
intact step. Other files in the folder do not change. The seed is fixed; ZEROPAGE_SWEEP_SEED and ZEROPAGE_SWEEP_ROUNDS
try others.
"""

import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from processes import output_of
from training import (
    DAMPING_EPS,
    LEARNING_RATE,
    WEIGHT_DECAY,
    config_of,
    flat_parameters,
    part_of_batch,
    small_net,
    token_batch,
)

import zeropage
from zeropage.errors import CheckpointError
from zeropage.testing import run_ranks

SEED = int(os.environ.get("ZEROPAGE_SWEEP_SEED", "1"))
ROUNDS = int(os.environ.get("ZEROPAGE_SWEEP_ROUNDS", "6"))
WORLD, STEPS = 2, 60
TIERS = {
    "memory": {},
    "host": {"offload_optimizer": {"device": "cpu"}},
    "drive": {"offload_optimizer": {"device": "nvme", "buffer_count": 3}},
}


def digest(values: torch.Tensor) -> str:
    return hashlib.sha256(values.numpy().tobytes()).hexdigest()


def worker(folder: str, drive: str, stage: int, tier: str, own: dict[str, Any], file_bytes: int, steps: int) -> None:
    """Resumes from `folder` and saves after every step, until it is ended; prints what has happened, as lines of
    JSON."""

    def tell(rank: int, **facts: Any) -> None:
        if rank == 0:
            print(json.dumps(facts), flush=True)

    def run(rank: int, communicator: Any) -> None:
        zero = json.loads(json.dumps(TIERS[tier]))
        if tier == "drive":
            zero["offload_optimizer"]["nvme_path"] = drive
        config = config_of(
            stage, eps=DAMPING_EPS, zero_optimization=zero, zeropage={"page_numel": 4096, "keep_last": 3, **own}
        )
        engine, *_ = zeropage.initialize(model=models[rank], config=config)
        try:
            engine.load_checkpoint(folder)
        except CheckpointError as error:
            tell(rank, refused=str(error))
            return
        tell(rank, loaded=engine.global_steps, digest=digest(flat_parameters(engine.module)))
        while engine.global_steps < steps:
            engine.backward(engine(*part_of_batch(token_batch(engine.global_steps), WORLD, rank)))
            engine.step()
            values = digest(flat_parameters(engine.module))
            try:
                engine.save_checkpoint(folder)
                tell(rank, saved=engine.global_steps, digest=values)
            except CheckpointError as error:
                tell(rank, not_saved=engine.global_steps, error=str(error))
        engine.destroy()

    torch.set_num_threads(1)
    models = [small_net() for _ in range(WORLD)]
    if file_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    run_ranks(WORLD, run)


@dataclass
class Sweep:
    folder: Path
    drive: Path
    expected: list[str]  # the digest after so many steps
    random: random.Random
    acknowledged: int = 0
    done: list[str] = field(default_factory=list)

    def start(self, own: dict[str, Any], file_bytes: int = 0) -> subprocess.Popen:
        tiers = [tier for tier in TIERS if not (file_bytes and tier == "drive")]  # its files need room
        stage, tier = self.random.choice(
            [(stage, tier) for stage in range(4) for tier in tiers if stage > 0 or tier == "memory"]
        )
        arguments = {"folder": str(self.folder), "drive": str(self.drive), "stage": stage, "tier": tier, "own": own}
        arguments |= {"file_bytes": file_bytes, "steps": STEPS}
        self.done.append(f"stage {stage}, {tier}, {own}")
        code = "import json, sys, test_checkpoint_sweep; test_checkpoint_sweep.worker(**json.loads(sys.argv[1]))"
        paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, "-c", code, json.dumps(arguments)], env=environment, stdout=subprocess.PIPE, text=True
        )

    def facts(self, process: subprocess.Popen) -> Iterator[dict[str, Any]]:
        """The worker's output; checks and keeps what it has saved."""
        for line in output_of(process):
            if not line.endswith("\n"):  # the process was killed while it wrote the line
                return
            fact = json.loads(line)
            if "saved" in fact:
                assert fact["digest"] == self.expected[fact["saved"]], self.done
                self.acknowledged = fact["saved"]
            yield fact

    def check_loaded(self, fact: dict[str, Any]) -> None:
        """An acknowledged step is not lost, and what is loaded has the bits of the undisturbed run."""
        step = fact["loaded"]
        assert step in (self.acknowledged, self.acknowledged + 1), (fact, self.acknowledged, self.done)
        assert fact["digest"] == self.expected[step], (fact, self.done)
        self.acknowledged = step

    def train_and_end(self, ending: str) -> None:
        """One run: it resumes where the last one ended, and ends by a signal after some saves; "full": no save is
        possible."""
        # A shard does not fit, whether a manifest would or not.
        process = self.start({}, file_bytes=self.random.choice([2_000, 20_000, 60_000]) if ending == "full" else 0)
        self.done[-1] += f", {ending}"
        left = self.random.randrange(1, 5)
        try:
            for fact in self.facts(process):
                if "loaded" in fact:
                    self.check_loaded(fact)
                elif "not_saved" in fact:
                    assert ending == "full" and "rank" in fact["error"] and str(self.folder) in fact["error"], (
                        fact,
                        self.done,
                    )
                    assert "bytes are needed" in fact["error"], fact
                else:
                    assert "saved" in fact, (fact, self.done)
                left -= 1
                if left == 0:
                    break
            if ending == "stopped":
                process.send_signal(signal.SIGSTOP)
                time.sleep(0.1)
                process.send_signal(signal.SIGCONT)
            time.sleep(self.random.random() * 0.1)
            process.kill()
            list(self.facts(process))
        finally:
            process.kill()
            process.wait()

    def damage(self) -> Path:
        """Changes a byte of the newest step, cuts off its end, or removes it; returns what was done."""
        newest = max(self.folder.glob("global_step*"), key=lambda path: int(path.name.removeprefix("global_step")))
        victim = self.random.choice(sorted(path for path in newest.iterdir() if path.name != "latest"))
        ways = ["flip", "truncate", "remove"]
        if (self.folder / "latest").read_text().strip() == newest.name:
            ways.append("remove the step")  # else its removal could not be noticed
        how = self.random.choice(ways)
        self.done.append(f"{how}: {victim}")
        if how == "flip":
            content = bytearray(victim.read_bytes())
            content[self.random.randrange(len(content))] ^= 1 << self.random.randrange(8)
            victim.write_bytes(content)
        elif how == "truncate":
            os.truncate(victim, self.random.randrange(victim.stat().st_size))
        elif how == "remove":
            victim.unlink()
        else:
            shutil.rmtree(newest)
        return newest

    def refuse_then_fall_back(self) -> None:
        """The damaged newest step is an error with its path; with allow_fallback the one before is loaded."""
        newest = self.damage()
        process = self.start({})
        told = list(self.facts(process))
        assert process.wait() == 0 and len(told) == 1, (told, self.done)
        assert newest.name in told[0]["refused"], (told, self.done)
        process = self.start({"allow_fallback": True})
        try:
            fact = next(self.facts(process))
            assert 0 < fact["loaded"] < int(newest.name.removeprefix("global_step")), (fact, self.done)
            assert fact["digest"] == self.expected[fact["loaded"]], (fact, self.done)
            self.acknowledged = fact["loaded"]
        finally:
            process.kill()
            list(self.facts(process))
            process.wait()
        # As the message advises: without the damaged step and every file that names it, the folder can be used again.
        latest = self.folder / "latest"
        if newest.exists() and self.acknowledged < int(newest.name.removeprefix("global_step")):
            shutil.rmtree(newest)
        if latest.exists() and not (self.folder / latest.read_text().strip()).exists():
            latest.unlink()


def plain_losses() -> torch.Tensor:
    """The losses on whole batches, by torch.optim.AdamW in this process."""
    model, losses = small_net(), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, eps=DAMPING_EPS)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = model(*token_batch(step))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses)


def expected_digests() -> list[str]:
    """The digests of an undisturbed run, whose losses are also plain PyTorch's."""

    def run(rank: int, communicator: Any) -> tuple[list[torch.Tensor], torch.Tensor]:
        engine, *_ = zeropage.initialize(
            model=models[rank], config=config_of(0, eps=DAMPING_EPS, zeropage={"page_numel": 4096})
        )
        found, losses = [flat_parameters(engine.module)], []
        for step in range(STEPS):
            loss = engine(*part_of_batch(token_batch(step), WORLD, rank))
            engine.backward(loss)
            engine.step()
            losses.append(loss.item())
            found.append(flat_parameters(engine.module))
        return found, torch.tensor(losses)

    models = [small_net() for _ in range(WORLD)]
    (found, losses), (_, other_losses) = run_ranks(WORLD, run)
    # In later steps a learning rate this high amplifies small differences.
    torch.testing.assert_close(((losses + other_losses) / WORLD)[:20], plain_losses()[:20], rtol=1e-3, atol=1e-4)
    return [digest(values) for values in found]


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_nothing_that_was_acknowledged_is_lost(tmp_path):
    """Catches a step that is loaded with other bits, an older one that is loaded without a message, and a folder that
    cannot be used after a kill."""
    foreign = tmp_path / "foreign"
    folder = tmp_path / "checkpoints"
    for name in (
        "notes/today.txt",
        ".theirs.tmp/part",
        ".x.0123456789abcdef.tmp/letter.txt",
        "runs/events.out",
        "README",
    ):
        path = foreign / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    shutil.copytree(foreign, folder)
    (tmp_path / "drive").mkdir()
    shared_memory = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    sweep = Sweep(folder, tmp_path / "drive", expected_digests(), random.Random(SEED))
    for number in range(ROUNDS):
        sweep.train_and_end(sweep.random.choice(["killed", "killed", "stopped", "full"]))
        if number % 3 == 2 and sweep.acknowledged > 1 and len(list(folder.glob("global_step*"))) > 1:
            sweep.refuse_then_fall_back()
    process = sweep.start({})
    facts = sweep.facts(process)
    sweep.check_loaded(next(facts))
    assert list(facts)[-1]["saved"] == STEPS and process.wait() == 0, sweep.done
    found = content_of(folder)
    assert {name: found.get(name) for name in content_of(foreign)} == content_of(foreign), sweep.done
    left = [
        name
        for name in found
        if name not in content_of(foreign) and not name.startswith(("global_step", "latest", "zero_to_fp32.py"))
    ]
    assert left == [], sweep.done
    if shared_memory:
        assert {name for name in set(os.listdir("/dev/shm")) - shared_memory if "zeropage" in name} == set()
