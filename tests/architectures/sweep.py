"""Architectures of public libraries, tiny and random, trained three steps at stage 3 on two ranks, compared with plain
PyTorch in one process.

    python tests/architectures/sweep.py                         # all that can be built; some ten minutes on two cores
    python tests/architectures/sweep.py --only llama t5         # these
    python tests/architectures/sweep.py --results FILE          # writes results there, and resumes after the file's
    last one python tests/architectures/sweep.py --results FILE --write docs/models.md

1. Workers are processes: one that crashes or hangs ends the trial of one architecture, and another one is started.
2. The parent sends a worker a name, and gets a line of JSON back (trial.Result).
"""

import argparse
import json
import queue
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE), str(HERE.parent)]

import libraries
import page
from trial import FAULT, Result, try_one

TRIAL_TIMEOUT_S = 180.0
START_TIMEOUT_S = 300.0


def work(library: str) -> None:
    """A worker: prints the names of the architectures, then tries those that it reads, until its input ends. The
    libraries print to stderr."""
    import torch

    answers = sys.stdout
    sys.stdout = sys.stderr
    torch.set_num_threads(1)
    models = libraries.load(library)
    print(json.dumps(models.names()), file=answers, flush=True)
    for line in sys.stdin:
        result = try_one(library, line.strip(), models.build)
        print(json.dumps(vars(result)), file=answers, flush=True)


class Worker:
    """A process that tries architectures of one library."""

    def __init__(self, library: str) -> None:
        self.library = library
        command = [sys.executable, __file__, "--worker", library]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert self._process.stdin is not None and self._process.stdout is not None and self._process.stderr is not None
        self._tasks, self._answers, self._errors = self._process.stdin, self._process.stdout, self._process.stderr
        self._messages: list[bytes] = []
        self._reader = threading.Thread(target=self._read_errors, daemon=True)
        self._reader.start()
        self.names: list[str] | None = self._answer(START_TIMEOUT_S)

    def _read_errors(self) -> None:
        for line in self._errors:
            self._messages = [*self._messages[-20:], line]

    def _answer(self, timeout_s: float) -> Any:
        """The next line, or None when none arrives in time. A worker writes a line at once, so that reading one does
        not wait."""
        ready, _, _ = select.select([self._answers], [], [], timeout_s)
        line = self._answers.readline() if ready else b""
        return json.loads(line) if line else None

    def attempt(self, name: str) -> Result | None:
        """The result of one architecture; None when the worker cannot be used any more."""
        self._tasks.write(f"{name}\n".encode())
        self._tasks.flush()
        answer = self._answer(TRIAL_TIMEOUT_S)
        return None if answer is None else Result(**answer)

    def why_it_ended(self) -> str:
        """Ends the process and returns its last output."""
        code = self._process.poll()
        self.close()
        messages = b"".join(self._messages).decode(errors="replace").strip().splitlines()
        return (
            f"no answer within {TRIAL_TIMEOUT_S:.0f} s" if code is None else f"exit code {code}"
        ) + f": {messages[-1] if messages else ''}"

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join(timeout=10)


def all_names(library: str) -> list[str]:
    worker = Worker(library)
    names = worker.names
    why = worker.why_it_ended()
    if names is None:
        raise RuntimeError(f"the worker for {library} did not start: {why}")
    return names


def sweep(
    wanted: Iterable[tuple[str, str]], workers: int, report: Callable[[Result], None] = lambda result: None
) -> list[Result]:
    """Tries (library, name) pairs in this order with some workers. Returns the results; each is also passed to `report`
    at once."""
    waiting: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
    for pair in wanted:
        waiting.put(pair)
    results: list[Result] = []

    def drain() -> None:
        worker: Worker | None = None
        while not waiting.empty():
            try:
                library, name = waiting.get_nowait()
            except queue.Empty:
                break
            if worker is None or worker.library != library:
                if worker is not None:
                    worker.close()
                worker = Worker(library)
            result = worker.attempt(name) if worker.names is not None else None
            if result is None:
                result, worker = Result(library, name, result=FAULT, detail=worker.why_it_ended()), None
            results.append(result)
            report(result)
        if worker is not None:
            worker.close()

    threads = [threading.Thread(target=drain) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def read_results(path: Path | None) -> list[Result]:
    """The results of an earlier sweep."""
    if path is None or not path.exists():
        return []
    return [Result(**json.loads(line)) for line in path.read_text().splitlines()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--library", nargs="*", choices=libraries.LIBRARIES, default=list(libraries.LIBRARIES), help="which libraries"
    )
    parser.add_argument("--only", nargs="*", metavar="NAME", help="these architectures; all without it")
    parser.add_argument("--workers", type=int, default=2, help="parallel processes; each has two ranks as threads")
    parser.add_argument(
        "--results",
        type=Path,
        metavar="FILE",
        help="writes results there; architectures with a result in the file are not tried again",
    )
    parser.add_argument("--write", type=Path, metavar="FILE", help="writes the table of the results there")
    parser.add_argument("--worker", choices=libraries.LIBRARIES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker)
        return 0
    results = read_results(options.results)
    known = {(result.library, result.name) for result in results}
    pairs = [
        (library, name)
        for library in options.library
        for name in all_names(library)
        if not options.only or name in options.only
    ]

    def tell(result: Result) -> None:
        print(f"{result.seconds:6.1f} s  {result.library} {result.name}: {result.result} {result.detail}", flush=True)
        if options.results:
            with options.results.open("a") as file:
                file.write(json.dumps(vars(result)) + "\n")

    results += sweep([pair for pair in pairs if pair not in known], options.workers, tell)
    counts = {
        kind: sum(result.result == kind for result in results)
        for kind in dict.fromkeys(result.result for result in results)
    }
    print(", ".join(f"{count} {kind}" for kind, count in counts.items()))
    if options.write:
        options.write.write_text(page.page_of(results))
    return any(result.result == FAULT for result in results)


if __name__ == "__main__":
    sys.exit(main())
