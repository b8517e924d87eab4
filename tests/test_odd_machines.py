"""Machines that lack something that most machines have, or lose it during a run: training gives plain PyTorch's results
there, or ends with an error that says what is wrong."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from odd_machines import MACHINES, STEPS, WORLD
from training import part_of_batch, small_net, token_batch

TESTS = Path(__file__).resolve().parent
CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/time.h>
#include <time.h>

int zeropage_clock_jumps = 0;

/* Looks at the clock of the day are an hour ahead and an hour behind in turn. */
static long offset(void) {
  static _Thread_local int looks = 0;
  return zeropage_clock_jumps ? (++looks % 2 ? 3600 : -3600) : 0;
}

int clock_gettime(clockid_t clock, struct timespec* now) {
  static int (*real)(clockid_t, struct timespec*) = 0;
  if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
  const int result = real(clock, now);
  if (clock == CLOCK_REALTIME) now->tv_sec += offset();
  return result;
}

int gettimeofday(struct timeval* restrict now, void* restrict zone) {
  struct timespec precise;
  clock_gettime(CLOCK_REALTIME, &precise);
  now->tv_sec = precise.tv_sec;
  now->tv_usec = precise.tv_nsec / 1000;
  return 0;
}

time_t time(time_t* to) {
  struct timespec precise;
  clock_gettime(CLOCK_REALTIME, &precise);
  if (to) *to = precise.tv_sec;
  return precise.tv_sec;
}
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[str, dict]:
    """The result of training on each machine: all of them in one process, which imports torch once."""
    folder = tmp_path_factory.mktemp("machines")
    (folder / "clock.c").write_text(CLOCK)
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", folder / "clock.so", folder / "clock.c", "-ldl"], check=True)
    paths = [str(TESTS), str(TESTS.parent / "examples"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "LD_PRELOAD": str(folder / "clock.so")}
    command = [sys.executable, str(TESTS / "odd_machines.py"), str(folder), *MACHINES]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def plain_losses() -> list[list[float]]:
    """By rank, of one process without the package."""
    model = small_net(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.01)
    losses: list[list[float]] = [[] for _ in range(WORLD)]
    for step in range(STEPS):
        optimizer.zero_grad()
        with torch.no_grad():
            for rank in range(WORLD):
                losses[rank].append(model(*part_of_batch(token_batch(step), WORLD, rank)).item())
        model(*token_batch(step)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
    return losses


def ranks_on(outcomes: dict[str, dict], machine: str) -> list[dict]:
    if "refused" in outcomes[machine]:
        pytest.skip(f"such a machine cannot be made here: {outcomes[machine]['refused']}")
    return outcomes[machine]["ranks"]


@pytest.mark.parametrize(
    "machine", ["64 KiB of /dev/shm", "no huge pages", "no io_uring", "no io_uring by sysctl", "a clock that jumps"]
)
def test_training_is_the_same(outcomes, plain_losses, machine):
    """Catches memory of ranks in /dev/shm, a store that needs io_uring or huge pages, and waits that depend on the
    clock of the day."""
    for rank, outcome in enumerate(ranks_on(outcomes, machine)):
        assert "losses" in outcome, outcome
        torch.testing.assert_close(outcome["losses"], plain_losses[rank], rtol=2e-5, atol=0)


def test_a_rank_that_the_kernel_ends_for_its_memory_is_named(outcomes):
    """Catches a rank that waits for its timeout, or for ever, when a control group's limit has ended its peer."""
    first, second = ranks_on(outcomes, "little memory")
    assert outcomes["little memory"]["statuses"][1] == signal.SIGKILL and not second
    assert first["error"].startswith("PeerError: rank 1 is lost (its process "), first


def test_a_mount_that_disappears_ends_saving(outcomes):
    """Catches a checkpoint that is written to the disk below the mount point and acknowledged, where no load finds
    it."""
    ranks = ranks_on(outcomes, "a mount that disappears")
    for outcome in ranks:
        assert outcome.get("error", "").startswith("CheckpointError: "), outcome
    assert "is on another file system than when this job first saved there" in ranks[0]["error"]
    assert outcomes["a mount that disappears"]["left"] == []
