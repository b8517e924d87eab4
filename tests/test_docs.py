"""The documentation is correct: its programs run, its configurations are accepted, its commands work, its links have
targets."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

import zeropage
from zeropage import _C

ROOT = Path(__file__).resolve().parent.parent
COMMAND = os.environ.get("ZEROPAGE_COMMAND", str(ROOT / "build" / "dev" / "zeropage"))
DOCS = ROOT / "docs"
# Reference pages and figures have no commands. Other tests run the commands of mpirun, torchrun, cmake and make.
GUIDES = tuple(
    sorted(
        {page.name for page in DOCS.glob("*.md")} - {"config.md", "checkpoint-format.md", "design.md", "benchmarks.md"}
    )
)
GUIDES += ("README.md",)
FRAGMENTS = {"README.md"}  # their Python code uses names that the reader defines
SUBCOMMANDS = {"config", "plan", "simulate", "ckpt", "io-bench", "report", "top", "doctor"}
WORLD = 2  # ranks for which configurations are read


def text_of(page: str) -> str:
    return ((ROOT if page == "README.md" else DOCS) / page).read_text()


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text_of(page), re.DOTALL | re.MULTILINE)


def commands(page: str) -> list[str]:
    """Indented lines that call the command `zeropage`, without the text around them."""
    lines = re.findall(r"^    ((?:\w+=\S+ )?zeropage .*)$", text_of(page), re.MULTILINE)
    return [line.split(" #")[0].strip() for line in lines]


@pytest.mark.parametrize("page", [page for page in GUIDES if blocks(page, "python") and page not in FRAGMENTS])
def test_programs_run(page, tmp_path, monkeypatch):
    """Catches a program that does not run unchanged. The programs of one page run in order; configurations are in the
    folder of them."""
    config = blocks(page, "json")
    if config:
        (tmp_path / "ds_config.json").write_text(config[0])
    monkeypatch.chdir(tmp_path)
    exec(compile("\n".join(blocks(page, "python")), page, "exec"), {"__name__": "__main__"})


CONFIGURATIONS = [(page, i) for page in GUIDES for i in range(len(blocks(page, "json")))]


@pytest.mark.parametrize(("page", "index"), CONFIGURATIONS)
def test_configurations_are_accepted(page, index):
    """Catches a key that was renamed, or never was."""
    text = blocks(page, "json")[index]
    if not text.startswith("{"):  # a part of one
        text = f'{{"train_batch_size": 8, {text}}}'
    json.loads(text)
    _C.Config.from_json(text, WORLD, page)


COMMANDS = sorted({line for page in GUIDES for line in commands(page)})


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with the files that the commands name."""
    folder = tmp_path_factory.mktemp("commands")
    for name in ("ds_config.json", "plan_config.json", "best.json"):
        (folder / name).write_text(blocks("getting-started.md", "json")[0])
    for name in ("train.py", "build.py", "train_gpt", "examples/train_gpt.py", "my_package/train.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    (folder / "hosts").write_text("worker-0 slots=4\nworker-1 slots=4\n")
    (folder / "runs").mkdir()
    run = {"record": "run", "version": "", "world_size": 1, "stage": 0, "device": "cpu", "trainable_parameters": 1}
    run |= {"formula_bytes": {}, "live_limit_bytes": None, "config": {"fp16": {"enabled": False}}}
    (folder / "runs" / "first.jsonl").write_text(json.dumps(run) + "\n")
    with tarfile.open(ROOT / "tests" / "deepspeed_checkpoints.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    (folder / "bf16_stage3").rename(folder / "deepspeed_checkpoints")
    (folder / "deepspeed").symlink_to(folder / "deepspeed_checkpoints")
    figures = (
        "device_memory",
        "flops",
        "device_memory_rate",
        "device_link_rate",
        "host_link_rate",
        "network_rate",
        "host_memory",
        "host_memory_rate",
        "disk",
        "disk_read_rate",
        "disk_write_rate",
    )
    machine = dict.fromkeys(figures, 1e12) | {
        "name": "mine",
        "device_latency": 1e-6,
        "network_latency": 1e-5,
        "overlap": 0.5,
    }
    (folder / "machine.json").write_text(json.dumps(machine))
    config = {"train_micro_batch_size_per_gpu": 1, "optimizer": {"type": "AdamW"}}
    engine, *_ = zeropage.initialize(model=torch.nn.Linear(2, 2), config=config)
    for tag in ("a", "b"):
        engine.save_checkpoint(str(folder / "checkpoints"), tag=tag)
    engine.destroy()
    return folder


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_work(line, folder, tmp_path):
    """Catches an option that was renamed. Jobs are not started: --dry_run prints what would run. Drives are measured
    briefly."""
    words = shlex.split(line)
    environment = {**os.environ, "VIRTUAL_ENV": sys.prefix}  # which Python the command takes
    while "=" in words[0]:
        name, value = words.pop(0).split("=", 1)
        environment[name] = value
    place = shutil.copytree(folder, tmp_path / "place", symlinks=True)
    arguments = words[1:]
    if arguments[0] not in SUBCOMMANDS:
        arguments.insert(0, "--dry_run")
    if arguments[0] == "io-bench":
        arguments += ["--quick", "--size_mib=64", "--rounds=1"]
    for option in ("--write", "--save_machine"):
        if option in arguments:
            (place / arguments[arguments.index(option) + 1]).unlink(missing_ok=True)
    done = subprocess.run([COMMAND, *arguments], cwd=place, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_messages_are_in_the_sources():
    """Catches advice for a message whose words have changed, so that a search for the message does not find it."""
    quoted = re.findall(r"^\| `(.+?)` \|", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)
    assert len(quoted) > 10
    files = [
        *(ROOT / "zeropage").rglob("*.cc"),
        *(ROOT / "python" / "zeropage").rglob("*.py"),
        *(ROOT / "tools").glob("*.sh"),
    ]
    # Long messages are split over several literals.
    sources = re.sub(r'"\s*"', "", "\n".join(path.read_text() for path in files)).replace("\\", "")
    assert [message for message in quoted if message not in sources] == []


def test_links_have_targets():
    """Catches a page that was renamed, in a string or in the site's navigation."""
    pages = sorted(DOCS.glob("*.md"))
    broken = []
    for page in [*pages, ROOT / "README.md"]:
        for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", page.read_text()):
            if not (page.parent / target).exists():
                broken.append(f"{page.name}: {target}")
    assert broken == []
    in_site = re.findall(r"^ +- (?:\w+: )?([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert len(in_site) > 15 and [name for name in in_site if not (DOCS / name).exists()] == []
