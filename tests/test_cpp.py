"""C++ programs: the example beside its Python twin, and a project of its own against the installed package."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
COMMAND = Path(os.environ.get("ZEROPAGE_COMMAND", ROOT / "build" / "dev" / "zeropage"))
BUILD = COMMAND.parent


def run(*words: object, folder: Path = ROOT) -> str:
    """Its output. A command that fails fails the test."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    package = os.pathsep.join([str(ROOT / "python"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": package, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([str(word) for word in words], cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{words[0]} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def launch(program: object, *arguments: object, folder: Path = ROOT) -> str:
    return run(COMMAND, "--num_gpus=2", program, *arguments, folder=folder)


def test_the_example_computes_what_its_python_twin_computes(tmp_path):
    """Catches a C++ engine that starts from, reduces or updates with other values than Python's: fp32 losses equal bit by bit."""
    config = {
        "train_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "weight_decay": 0.01}},
    }
    file = tmp_path / "ds_config.json"
    file.write_text(json.dumps(config))
    results = []
    for program in (BUILD / "examples" / "cpp" / "train_gpt", ROOT / "examples" / "train_gpt.py"):
        result = tmp_path / "result.json"
        shown = launch(program, f"--config={file}", "--steps=3", f"--result={result}")
        assert "step 3/3  loss" in shown and "model state" in shown
        results.append(json.loads(result.read_text()))
    ours, twin = results
    assert len(ours["losses"]) == 3 and ours["losses"] == twin["losses"]
    state = ("parameters", "gradients", "optimizer")
    assert [[rank[kind] for kind in state] for rank in ours["bytes"]] == [[rank[kind] for kind in state] for rank in twin["bytes"]]


@pytest.mark.slow
def test_a_project_finds_the_installed_package():
    """Catches a header, a library or a CMake file that is not installed. What it builds stays, so that the next run is short."""
    project, folder = ROOT / "tests" / "cpp_package", BUILD / "cpp_package"
    run("cmake", "--install", BUILD, "--prefix", folder / "prefix")
    compiler_cache = "-DCMAKE_CXX_COMPILER_LAUNCHER=ccache"
    run("cmake", "-S", project, "-B", folder / "build", "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={folder / 'prefix'}", compiler_cache)
    run("cmake", "--build", folder / "build")
    shown = launch(folder / "build" / "train", folder=project)
    losses = [float(line.rsplit("loss ", 1)[1]) for line in shown.splitlines() if "  loss " in line]
    assert len(losses) == 20 and losses[-1] < losses[0] / 4
    assert "stage 3" in shown


def test_the_guide_shows_the_program_that_is_tested():
    """Catches a guide whose program is no longer the one that works."""
    guide = (ROOT / "docs" / "cpp.md").read_text()
    for name in ("CMakeLists.txt", "train.cc", "ds_config.json"):
        assert (ROOT / "tests" / "cpp_package" / name).read_text() in guide, f"docs/cpp.md shows another {name}"
