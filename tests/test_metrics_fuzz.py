"""The readers of a metrics file, `zeropage report` and `top`, on files with bytes changed at random.

ZEROPAGE_FUZZ_SECONDS and ZEROPAGE_FUZZ_SEED run other and longer searches.
"""

import json
import os
import random
import time

import pytest
from test_run_page import RUN, Page, step

from zeropage import errors
from zeropage.tools import run_page, top

SECONDS = float(os.environ.get("ZEROPAGE_FUZZ_SECONDS", "3"))
SEED = int(os.environ.get("ZEROPAGE_FUZZ_SEED", "18"))
LEAST = 30  # files, however slow the machine
PIECES = [
    b"\n",
    b"\r",
    b"\0",
    b'"',
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"null",
    b"true",
    b"-",
    b"1e999",
    b"NaN",
    b"Infinity",
    b"\xff",
    b"\\u0000",
]
PIECES += [
    b"\\ud800",
    b"9" * 30,
    b"9" * 5000,
    b"[" * 2000,
    b"<script>",
    b'"record"',
    b'"step"',
    b'"run"',
    b'"pages"',
    b"0.0",
    b"\xe2\x80\xa8",
]


def mutate(content: bytes, generator: random.Random) -> bytes:
    """Some bytes changed, cut out, doubled, or replaced by a piece that means something to a reader of JSON."""
    data = bytearray(content)
    for _ in range(generator.choice([1, 1, 2, 4, 16])):
        at = generator.randrange(len(data) + 1)
        end = min(len(data), at + generator.choice([0, 1, 1, 2, 8, 64, 512]))
        way = generator.randrange(4)
        if way == 0:
            data[at:end] = bytes(generator.randrange(256) for _ in range(end - at))
        elif way == 1:
            del data[at:end]
        elif way == 2:
            data[at:at] = data[at:end]
        else:
            data[at:end] = generator.choice(PIECES)
    return bytes(data)


def test_changed_bytes_give_a_page_or_an_error_of_the_package(tmp_path):
    """Catches a file that ends a reader with an error of Python, is read for ever, or puts an element of its own into
    the page."""
    records = [
        RUN,
        *(step(n, loss=None if n == 2 else 1.5) for n in range(1, 5)),
        {"record": "pages", "pages": [["0", 1, 2, 3]]},
    ]
    content = "".join(json.dumps(record) + "\n" for record in records).encode()
    path = tmp_path / "run.jsonl"
    path.write_bytes(content)
    sound = Page(run_page.page_of(run_page.read_run(path)))
    generator = random.Random(SEED)
    end = time.monotonic() + SECONDS
    pages = refused = 0
    while time.monotonic() < end or pages + refused < LEAST:
        mutated = mutate(content, generator)
        path.write_bytes(mutated)
        try:
            page = Page(run_page.page_of(run_page.read_run(path)))
            assert page.fetched == [] and set(page.tags) <= set(sound.tags) | {"p"}, mutated
            pages += 1
        except (errors.ConfigError, errors.IoError):
            refused += 1
        except Exception as error:
            pytest.fail(f"file {pages + refused} of seed {SEED}: {type(error).__name__}: {error}\n{mutated!r}")
        try:
            with open(path, "rb"):  # as rank 0 of a job has it
                top._progress_lines(top.last_steps(os.getpid()))
        except Exception as error:
            pytest.fail(f"top, file {pages + refused} of seed {SEED}: {type(error).__name__}: {error}\n{mutated!r}")
    print(f"{pages} pages, {refused} refused")
    assert pages > 0, "the mutations leave no file that is read"
