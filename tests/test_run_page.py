"""`zeropage report`: the page about a run, and `zeropage doctor`."""

import json
import math
import os
import random
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browser import Browser, find_browser

from zeropage import errors
from zeropage.tools import doctor, run_page
from zeropage.tools.svg_charts import Chart, Level, nice_ticks

ROOT = Path(__file__).resolve().parent.parent
COMMAND = os.environ.get("ZEROPAGE_COMMAND", str(ROOT / "build" / "dev" / "zeropage"))
RUN = {
    "record": "run",
    "version": "0.1.0",
    "world_size": 2,
    "stage": 3,
    "device": "cpu",
    "trainable_parameters": 1000,
    "formula_bytes": {"parameters": 2000, "gradients": 2000, "optimizer": 6000},
    "live_limit_bytes": 1000,
    "config": {"fp16": {"enabled": True}, "note": "</script><b>&"},
}


def step(number: int, loss: float | None = 1.5) -> dict:
    seconds = {
        "whole": 0.1,
        "forward": 0.03,
        "backward": 0.04,
        "step": 0.02,
        "fault": 0.01,
        "wait": 0.0,
        "update": 0.01,
        "gather": 0.01,
        "reduce": 0.02,
    }
    return {
        "record": "step",
        "step": number,
        "samples": 8 * number,
        "loss": loss,
        "lr": 1e-3,
        "grad_norm": 0.5,
        "loss_scale": 65536.0,
        "applied": loss is not None,
        "seconds": seconds,
        "bytes": {
            "parameters": [2000, 2000],
            "gradients": [2000, 2000],
            "optimizer": [6000, 6000],
            "frames": [500 * number, 4000],
            "buffers": [0, 0],
        },
        "host_bytes": {"optimizer": [12345, 12345]},
        "process_bytes": 1 << 28,
        "faults": 3 * number,
        "evictions": 2 * number,
    }


def write(path: Path, *records: dict, tail: str = "") -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + tail)
    return path


class Page(HTMLParser):
    """The document as a reader sees it: every tag closed in its order, strings, and what would be fetched."""

    def __init__(self, html: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.handlers: list[str] = []
        self.strings: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.fetched += [value for name, value in attributes if name in ("src", "href", "xlink:href")]
        self.handlers += [name for name, _ in attributes if name.startswith("on")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.strings.append(data)


def test_the_page_shows_what_the_file_says(tmp_path):
    """Catches figures of another step than the last, of a step that was done twice, and text that breaks the
    document."""
    pages = {"record": "pages", "step": 3, "pages": [["page 0 (<a> & 'b')", 4096, 7, 5], ["page 1 (idle)", 4096, 0, 0]]}
    records = [RUN, step(1), step(2, loss=9.0), RUN, step(2, loss=1.25), step(3, loss=0.75), pages]
    path = write(tmp_path / "first.jsonl", *records, tail='{"record": "st')
    html = run_page.page_of(run_page.read_run(tmp_path))
    page = Page(html)
    assert page.open == [], "a tag was not closed"
    assert page.fetched == [] and "script" not in page.tags, "the page needs nothing but itself"
    assert not re.search(r"url\(|@import|https?:", html)
    assert 'name="viewport"' in html
    text = " ".join(page.strings)
    for expected in (
        "0.75",
        "1,000 parameters at stage 3 on 2 ranks",
        "begun 2 times",
        path.name,
        "page 0 (<a> & 'b'), 4.00 KiB",
        "100 ms",
    ):
        assert expected in text, expected
    assert "9" not in re.findall(r"step 2: loss (\S+)", text), "the later step 2 counts"
    assert "step 2: loss 1.25" in text and "page 1 (idle)" not in text
    assert "state by the formula 9.77 KiB" in text and "with the live limit 10.7 KiB" in text
    assert "optimizer, offloaded 12.1 KiB" in text
    assert text.count(f"{path.name}: ") == 9, "each picture names the file and the fields that its numbers are from"
    assert text.count("</script><b>&") == 1, "the configuration is shown as text"


BROWSER = find_browser()


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed here")
def test_the_page_in_a_browser(tmp_path):
    """Catches errors that only a browser finds, requests for what is not in the file, and charts that are wider than a
    phone's window."""
    pages = {
        "record": "pages",
        "step": 30,
        "pages": [[f"page {i} (a.very.long.{'name.' * 12}weight)", 4096, i, i] for i in range(30)],
    }
    path = write(tmp_path / "run.jsonl", RUN, *[step(n, loss=3 / n) for n in range(1, 31)], pages)
    page = path.with_suffix(".html")
    page.write_text(run_page.page_of(run_page.read_run(path)))
    broken = tmp_path / "broken.html"
    viewport = "<meta name=viewport content='width=device-width,initial-scale=1'>"
    broken.write_text(
        f"{viewport}<script>console.error('an error'); nothing.there()</script><img src='gone.png'><div style='width:900px'>wide</div>"
    )
    assert BROWSER is not None
    with Browser(BROWSER, tmp_path / "profile") as browser:
        phone, desk, bad = browser.open(page, 390), browser.open(page, 1180), browser.open(broken, 390)
    for opened, width, columns in ((phone, 390, 1), (desk, 1180, 2)):
        assert opened.complaints == []
        assert opened.width == width and opened.document_width <= width and opened.wide == []
        assert len(opened.charts) == 8 and min(opened.charts) > 300 and opened.columns == columns
        assert "Faults and evictions by page" in opened.text
    assert len(bad.complaints) >= 3 and "DIV" in bad.wide, "this test sees what is wrong"


def test_a_run_that_has_only_begun(tmp_path):
    """Catches a page that fails for a run without steps, with one step, or with steps that were skipped."""
    for records in ([RUN], [RUN, step(1)], [RUN, step(1), step(2, loss=None)]):
        Page(run_page.page_of(run_page.read_run(write(tmp_path / "run.jsonl", *records))))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "got 0 lines"),
        ("loss 3\n", "got 1 lines without one"),
    ],
)
def test_other_files_are_refused(content, message, tmp_path):
    """Catches a page of nonsense, or a Python error, where a line could be named."""
    path = tmp_path / "run.jsonl"
    path.write_text(content)
    with pytest.raises(errors.ConfigError, match=message):
        run_page.read_run(path)


def hostile_values() -> list:
    markup = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>&amp;</style></svg>]]>"
    deep: list = []
    for _ in range(100):
        deep = [deep]
    return [markup, "\ud800\x1b[2J\0", "", None, True, -1, 0, 1, 2**63, 10**400, 1e308, -1e308, 5e-324, float("nan"), float("inf"),
            [], {}, [markup], {markup: markup}, {markup: [1, 2]}, deep]  # fmt: skip


def damaged(record: dict, generator: random.Random) -> dict:
    """The record with one to three values, keys or parts replaced or removed."""
    record = json.loads(json.dumps(record))
    for _ in range(generator.randint(1, 3)):
        part = record
        while isinstance(part, (dict, list)) and part:
            place = generator.choice(list(part) if isinstance(part, dict) else range(len(part)))
            if isinstance(part[place], (dict, list)) and part[place] and generator.random() < 0.7:
                part = part[place]
                continue
            change = generator.random()
            if change < 0.15:
                del part[place]
            elif change < 0.3 and isinstance(part, dict):
                part[generator.choice([v for v in hostile_values() if isinstance(v, str)])] = part.pop(place)
            else:
                part[place] = generator.choice(hostile_values())
            break
    return record


def test_a_hostile_file_gives_a_harmless_page(tmp_path):
    """Catches text of the file that becomes an element, an attribute or a script of the page, and values that end the
    command."""
    pages = {"record": "pages", "step": 3, "pages": [["page 0", 4096, 7, 5], ["page 1", 4096, 1, 0]]}
    records = [RUN, *map(step, range(1, 5)), pages]
    harmless = set(Page(run_page.page_of(run_page.read_run(write(tmp_path / "run.jsonl", *records)))).tags) | {"circle"}
    generator = random.Random(18)
    taken = 0
    for trial in range(200):
        lines = [RUN, *(damaged(record, generator) if generator.random() < 0.5 else record for record in records)]
        path = write(tmp_path / "<b onload=x>'\".jsonl", *lines, tail='{"record": "step"')
        run = run_page.read_run(path)
        taken += len(run.skipped) < len(lines) / 2
        html = run_page.page_of(run)
        html.encode()
        page = Page(html)
        assert page.open == [] and set(page.tags) <= harmless, trial
        assert page.fetched == [] and not page.handlers, trial
    assert taken > 50, "most of what is damaged in one place still has a page"


def test_all_text_is_escaped_in_one_place():
    """Catches markup that is put together without the function that escapes."""
    for name in ("run_page", "svg_charts"):
        source = (ROOT / "python" / "zeropage" / "tools" / f"{name}.py").read_text()
        by_hand = [
            line
            for line in source.splitlines()
            if re.search(r"""f["'].*<[a-z/]|["']</?[a-z]""", line) and "doctype" not in line
        ]
        assert by_hand == [], name


def test_incomplete_lines_are_left_out_and_counted(tmp_path, capsys):
    """Catches a report that one incomplete line in the middle ends, and one that hides that something is missing."""
    path = tmp_path / "run.jsonl"
    torn = json.dumps(step(2))[:100]
    lines = [
        json.dumps(RUN),
        json.dumps(step(1)),
        torn + json.dumps(RUN),
        json.dumps(step(3)),
        "[1]",
        '{"record": "step"}',
    ]
    path.write_bytes("\n".join(lines).encode() + b'\n\xff\xfe\n{"record": "st')
    assert run_page.main([str(path)]) == 0
    messages = capsys.readouterr().err
    assert "5 lines were left out" in messages and "(line 3, 5, 6, 7, 8)" in messages
    assert "5 lines were left out" in path.with_suffix(".html").read_text()
    assert [record["step"] for record in run_page.read_run(path).steps] == [1, 3]


@pytest.mark.parametrize("kind", ["folder.jsonl", "pipe.jsonl", "/dev/zero"])
def test_only_files_are_read(kind, tmp_path):
    """Catches a report that waits for a pipe, or that reads a device until the memory ends."""
    path = Path(kind) if kind.startswith("/") else tmp_path / kind
    if kind == "pipe.jsonl":
        os.mkfifo(path)
    elif kind == "folder.jsonl":
        (path / "x.jsonl").mkdir(parents=True)
    with pytest.raises(errors.ConfigError, match="expected a metrics file"):
        run_page.read_run(path)


def test_where_the_run_is(tmp_path):
    """Catches a path without a run, or of no file, that ends in an error of Python."""
    with pytest.raises(errors.ConfigError, match="got none"):
        run_page.read_run(tmp_path)
    with pytest.raises(errors.IoError, match="readable"):
        run_page.read_run(tmp_path / "missing.jsonl")


def test_long_runs_stay_small():
    """Catches a page of a long run that no browser opens, and a mean that is not one."""
    steps = range(1, 100_001)
    chart = Chart(steps, {"loss": [float(s) for s in steps]}, str, levels=(Level("goal", 3.0),)).svg()
    points = re.search(r'points="([^"]+)"', chart)
    assert points is not None and len(points[1].split()) == 200 and len(chart) < 60_000
    assert "step 1<" in chart and "step 100,000<" in chart and "step 1,000: loss 750.5" in chart


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 7.3e-5), (-3, 12.5), (2.198, 7.5), (5, 5), (0, 0), (0, 3.3e12)])
def test_axes_have_round_ends(low, high):
    """Catches curves outside of the drawing, and axes with one tick or fifty."""
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low and ticks[-1] >= high and 3 <= len(ticks) <= 7
    assert all(math.isclose(b - a, ticks[1] - ticks[0]) for a, b in zip(ticks, ticks[1:], strict=False))


def test_doctor_says_what_to_do(monkeypatch):
    """Catches a finding without advice, and a machine that is odd in one way and is not examined at all."""
    monkeypatch.setattr(
        doctor.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1 << 20, "total": 64 << 20})()
    )
    monkeypatch.setattr(doctor, "_HUGE_PAGES", "/nowhere")
    monkeypatch.setattr(doctor.shutil, "which", lambda name: 1 / 0)
    findings = {finding.name: finding for finding in doctor.examine()}
    assert {"versions", "devices", "memory", "io_uring", "locked memory", "huge pages", "NCCL"} <= set(findings)
    assert findings["shared memory"].level == "warning" and "--shm-size" in findings["shared memory"].advice
    assert "ZeroDivisionError" in findings["mpi"].text
    assert all(f.advice for f in findings.values() if f.level == "warning" and f.name != "mpi")


def test_commands(tmp_path, capsys):
    """Catches a command that the launcher takes for a script, and exit codes that scripts cannot use."""
    path = write(tmp_path / "run.jsonl", RUN, step(1))
    assert run_page.main([str(path), "--output", str(tmp_path / "page.html")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    assert doctor.main(["--json"]) == 0
    assert {finding["level"] for finding in json.loads(capsys.readouterr().out)} <= {"ok", "note", "warning"}
    alias = subprocess.run(
        [Path(sys.prefix) / "bin" / "ds_report", "--json"], capture_output=True, text=True, timeout=60
    )
    assert alias.returncode == 0 and json.loads(alias.stdout), alias.stderr
    environment = {**os.environ, "VIRTUAL_ENV": sys.prefix}  # which Python the command takes
    missing = subprocess.run(
        [COMMAND, "report", str(tmp_path / "no.jsonl")], env=environment, capture_output=True, text=True, timeout=60
    )
    assert missing.returncode == 74 and "no.jsonl" in missing.stderr
