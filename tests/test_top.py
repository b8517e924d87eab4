"""`zeropage top`: which processes are ranks, and what it shows of them."""

import os
import subprocess
import sys
import time

import pytest
from processes import output_of
from test_run_page import RUN, step, write

from zeropage.tools import top

# A rank that keeps a processor busy, has its metrics file open, and has a child with the same environment, as a
# loader's worker is.
RANK = """
import os, subprocess, sys, time
file = open(sys.argv[1])
worker = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
print(worker.pid, flush=True)
while os.getppid() == int(sys.argv[2]):
    sum(range(10000))
"""


@pytest.fixture
def job(tmp_path):
    """Two processes that look like the ranks of a job; their ids by rank."""
    metrics = tmp_path / "run.jsonl"
    steps = [step(n, loss=1.25) for n in (6, 7)]
    write(
        metrics, RUN, *[{**one, "seconds": {**one["seconds"], "whole": 0.5}} for one in steps], tail='{"record": "ste'
    )
    ranks = []
    for rank in range(2):
        environment = {**os.environ, "ZEROPAGE_JOB_TOKEN": f"job-{os.getpid()}", "RANK": str(rank), "WORLD_SIZE": "2"}
        ranks.append(
            subprocess.Popen(
                [sys.executable, "-c", RANK, metrics, str(os.getpid())],
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
    for process in ranks:
        output_of(process).readline()
    yield {rank: process.pid for rank, process in enumerate(ranks)}
    for process in ranks:
        process.kill()
        process.communicate()


def test_a_running_job(job):
    """Catches workers that count as ranks, rates that are totals, and a step that is not the last whole one."""
    ranks = [rank for rank in top.find_ranks() if rank.job == f"job-{os.getpid()}"]
    assert {rank.rank: rank.pid for rank in ranks} == job
    before = top.usages(ranks)
    time.sleep(0.3)
    after = top.usages(ranks)
    text = top.table(ranks, before, after)
    assert "2 of 2 ranks here" in text
    assert "step 7, loss 1.25, 500 ms a step, 16.0 samples/s" in text
    rows = [line.split() for line in text.splitlines() if line.split()[0] in ("0", "1")]
    assert [int(row[1]) for row in rows] == [job[0], job[1]]
    processors = [float(row[4]) for row in rows]
    assert all(0 <= value < 2 for value in processors) and sum(processors) > 0


def test_ranks_that_have_ended():
    """Catches a command that fails when a process has ended, or when there is none."""
    assert top.usage_of(2**22 + 1) is None and top.last_steps(2**22 + 1) == []
    assert "no job runs here" in top.table([], {}, {})
    gone = top.Rank(2**22 + 1, 1, "job", 0, 1, "train.py")
    assert "1 of 1 ranks" in top.table([gone], {}, {})


def test_a_step_that_took_no_time():
    """Catches a division by a step time from a damaged file."""
    last = step(2)
    assert top._progress_lines([step(1), {**last, "seconds": {**last["seconds"], "whole": 0}}]) == [
        "step 2, loss 1.5, 0 ms a step"
    ]
