"""C++ programs: the example compared with its Python counterpart, and a separate project built against the installed
package."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from gpt import Gpt, GptConfig
from text_data import LibraryText

import zeropage

ROOT = Path(__file__).resolve().parent.parent
COMMAND = Path(os.environ.get("ZEROPAGE_COMMAND", ROOT / "build" / "dev" / "zeropage"))
BUILD = COMMAND.parent


CONFIG = {
    "train_batch_size": 8,
    "gradient_accumulation_steps": 2,
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "weight_decay": 0.01}},
}

needs_mpirun = pytest.mark.skipif(shutil.which("mpirun") is None, reason="no mpirun here: make setup installs Open MPI")
MPIRUN = {  # Open MPI refuses root, and more ranks than cores, unless asked
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}


def run(*words: object, folder: Path = ROOT, package: Path = ROOT / "python", **variables: str) -> str:
    """Its output. A command that fails fails the test."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    packages = os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")])
    ours = {"PATH": path, "PYTHONPATH": packages, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", **MPIRUN}
    environment = {**os.environ, **ours, **variables}
    done = subprocess.run(
        [str(word) for word in words], cwd=folder, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, f"{words[0]} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def launch(program: object, *arguments: object, folder: Path = ROOT) -> str:
    return run(COMMAND, "--num_gpus=2", program, *arguments, folder=folder)


def test_the_example_computes_what_its_python_counterpart_computes(tmp_path):
    """Catches a C++ engine that starts from, reduces or updates with other values than Python's: fp32 losses equal bit
    by bit."""
    file = tmp_path / "ds_config.json"
    file.write_text(json.dumps(CONFIG))
    results = []
    for program in (BUILD / "examples" / "cpp" / "train_gpt", ROOT / "examples" / "train_gpt.py"):
        result = tmp_path / "result.json"
        shown = launch(program, f"--config={file}", "--steps=3", f"--result={result}")
        assert "step 3/3  loss" in shown and "model state" in shown
        results.append(json.loads(result.read_text()))
    ours, twin = results
    assert len(ours["losses"]) == 3 and ours["losses"] == twin["losses"]
    state = ("parameters", "gradients", "optimizer")
    assert [[rank[kind] for kind in state] for rank in ours["bytes"]] == [
        [rank[kind] for kind in state] for rank in twin["bytes"]
    ]


def python_continues(file: Path, folder: Path, steps: int) -> list[float]:
    """What `train_gpt --checkpoint` does, by the Python package in this process."""
    shape = GptConfig()
    engine, *_ = zeropage.initialize(model=Gpt(shape), config=str(file))
    assert engine.load_checkpoint(folder)[0] is not None
    losses = []
    for batch in itertools.islice(engine.deepspeed_io(LibraryText(shape.context)), engine.micro_steps, None):
        if engine.global_steps == steps:
            break
        engine.backward(engine(batch))
        engine.step()
        losses.append(engine.mean_loss())
    engine.save_checkpoint(folder)
    engine.destroy()  # the folder is the next process's
    return losses


def test_each_language_continues_from_the_checkpoints_of_the_other(tmp_path):
    """Catches a checkpoint that only its own language understands, and state that is not loaded."""
    file, result = tmp_path / "config.json", tmp_path / "result.json"
    file.write_text(json.dumps({**CONFIG, "gradient_accumulation_steps": 1}))

    def continue_training(folder: str, steps: int) -> list[float]:
        program = BUILD / "examples" / "cpp" / "train_gpt"
        run(program, f"--config={file}", f"--steps={steps}", f"--checkpoint={tmp_path / folder}", f"--result={result}")
        return json.loads(result.read_text())["losses"]

    continue_training("ours", 1)
    shutil.copytree(tmp_path / "ours", tmp_path / "twin")
    assert python_continues(file, tmp_path / "twin", 3) == continue_training("ours", 3)
    assert continue_training("twin", 4) == continue_training("ours", 4)


def losses_under_mpirun(folder: Path, config: dict, program: list[object]) -> list[float]:
    file, result = folder / "config.json", folder / "result.json"
    file.write_text(json.dumps(config))
    run("mpirun", "-n", 2, *program, f"--config={file}", "--steps=2", f"--result={result}")
    return json.loads(result.read_text())["losses"]


@needs_mpirun
def test_mpirun_starts_the_example_without_our_launcher(tmp_path):
    """Catches ranks that do not find each other, and an MPI that computes other sums than shared memory. In the second
    run the environment names two hosts; MPI finds out that they share memory."""
    program = BUILD / "examples" / "cpp" / "train_gpt"
    two_hosts = ["env", "OMPI_COMM_WORLD_LOCAL_RANK=0", "OMPI_COMM_WORLD_LOCAL_SIZE=1", program]
    shared = losses_under_mpirun(tmp_path, CONFIG, [program])
    assert losses_under_mpirun(tmp_path, CONFIG, two_hosts) == shared
    assert losses_under_mpirun(tmp_path, {**CONFIG, "zeropage": {"communicator": "mpi"}}, [program]) == shared


@needs_mpirun
def test_a_model_larger_than_memory_is_built_and_trained(monkeypatch):
    """Catches a rank that holds the whole model at any moment: while it is built, or when the engine takes it over."""
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")  # else each thread takes 64 MiB of address space
    program = BUILD / "memory_limit"
    without = subprocess.run([program], capture_output=True, text=True, timeout=60)
    assert without.returncode == 1 and "can't allocate memory" in without.stderr
    shown = run("mpirun", "-n", 2, program, "init")
    assert shown.count("loss changed") == 2


def test_errors_have_their_exit_codes(tmp_path):
    """Catches an error for which the launcher would start a C++ program again although that cannot help."""
    program = BUILD / "examples" / "cpp" / "train_gpt"
    file = tmp_path / "ds_config.json"
    file.write_text('{"train_batch_size": 2, "zero_optimization": {"stage": 9}}')
    codes = [
        subprocess.run([program, f"--config={path}"], capture_output=True, timeout=60).returncode
        for path in (file, "/nowhere")
    ]
    assert codes == [64, 74]


def test_sigterm_ends_a_run_with_a_checkpoint(tmp_path):
    """Catches a C++ program that SIGTERM kills without a checkpoint, an exit code for which it is started again, and a
    metrics file that `zeropage report` cannot read."""
    metrics, file, folder = tmp_path / "run.jsonl", tmp_path / "config.json", tmp_path / "saved"
    own = {"preemption_folder": str(folder), "preemption_grace_s": 60, "metrics_file": str(metrics)}
    file.write_text(json.dumps({**CONFIG, "gradient_accumulation_steps": 1, "zeropage": own}))
    program = str(BUILD / "examples" / "cpp" / "train_gpt")
    command = [str(COMMAND), "--num_gpus=2", program, f"--config={file}", "--steps=1000000"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    job = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    while (
        time.monotonic() < end
        and job.poll() is None
        and not (metrics.exists() and '"record":"step"' in metrics.read_text())
    ):
        time.sleep(0.05)
    job.terminate()
    _, messages = job.communicate(timeout=60)
    assert job.returncode == 0, messages
    saved = (folder / "latest").read_text().strip()
    assert messages.count(f"ended by SIGTERM after step {saved.removeprefix('global_step')}; resume from {folder}") == 2
    run(COMMAND, "report", metrics, folder=tmp_path)
    assert "</html>" in metrics.with_suffix(".html").read_text()


@needs_mpirun
def test_ranks_on_hosts_that_mpi_does_not_know_are_refused(tmp_path):
    """Catches ranks of several hosts, started by another launcher, that would each train separately."""
    file = tmp_path / "ds_config.json"
    file.write_text(json.dumps({**CONFIG, "zeropage": {"communicator": "mpi"}}))
    world = {
        "RANK": "1",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "first",
        "MASTER_PORT": "1",
    }
    command = [str(BUILD / "examples" / "cpp" / "train_gpt"), f"--config={file}"]
    done = subprocess.run(command, env={**os.environ, **MPIRUN, **world}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 64
    assert "the environment says rank 1 of 2, MPI says rank 0 of 1" in done.stderr


def check_package(folder: Path, where: str, command: Path) -> None:
    """Builds the project of the guide against an installed package and trains two ranks."""
    project = ROOT / "tests" / "cpp_package"
    settings = [
        "-DCMAKE_CXX_COMPILER_LAUNCHER=ccache",
        "-DCMAKE_NO_SYSTEM_FROM_IMPORTED=ON",
        "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror",
    ]
    run("cmake", "-S", project, "-B", folder / "build", "-G", "Ninja", where, *settings)
    run("cmake", "--build", folder / "build")
    shown = run(command, "--num_gpus=2", folder / "build" / "train", folder=project)
    losses = [float(line.rsplit("loss ", 1)[1]) for line in shown.splitlines() if "  loss " in line]
    assert len(losses) == 20 and losses[-1] < losses[0] / 4
    assert "stage 3" in shown


@pytest.mark.slow
def test_a_project_finds_the_installed_package():
    """Catches a header, a library or a CMake file that is not installed. Its build folder is kept, so that the next run
    is short."""
    folder = BUILD / "cpp_package"
    run("cmake", "--install", BUILD, "--prefix", folder / "prefix")
    check_package(folder, f"-DCMAKE_PREFIX_PATH={folder / 'prefix'}", folder / "prefix" / "bin" / "zeropage")


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("ccache") is None, reason="without ccache a wheel compiles everything again, for minutes"
)
@pytest.mark.timeout(1200)  # a build with counters has none of the wheel's files in ccache
def test_a_project_finds_the_installed_wheel(tmp_path):
    """Catches a wheel that cannot be built, that lacks what C++ programs need, or that needs libraries which a machine
    may not have. Its files are compiled as the build's were, so that
    the compiler's cache has them all."""
    cache = (BUILD / "CMakeCache.txt").read_text()
    compiler = re.search(r"^CMAKE_CXX_COMPILER:\w+=(.*)$", cache, re.MULTILINE)
    assert compiler is not None, "the build's cache names no compiler"
    pip, site = [sys.executable, "-m", "pip", "--disable-pip-version-check"], BUILD / "wheel_package" / "site"
    shutil.rmtree(site, ignore_errors=True)  # always the same path, so that the project's own file is in the cache, too
    run(
        *pip, "wheel", "--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir", tmp_path, ROOT, CXX=compiler[1]
    )
    run(*pip, "install", "--no-deps", "--no-index", "--target", site, next(tmp_path.glob("zeropage-*.whl")))
    for library in [*site.rglob("zeropage/**/*.so"), site / "bin" / "zeropage"]:
        needed = re.findall(r"NEEDED.*\[(.*)\]", run("readelf", "-d", library))
        known = r"lib(torch\w*|c10\w*|gomp\S*|stdc\+\+|gcc_s|m|c|rt|dl|pthread)\.so.*|ld-linux.*"
        assert needed and all(re.fullmatch(known, name) for name in needed), f"{library} needs {needed}"
    package = run(sys.executable, "-m", "zeropage", "--cmake-dir", folder=tmp_path, package=site).strip()
    assert Path(package).is_relative_to(site)
    check_package(BUILD / "wheel_package", f"-Dzeropage_DIR={package}", site / "bin" / "zeropage")


@pytest.mark.slow
def test_a_project_may_ask_for_the_package_without_torch(tmp_path):
    """Catches a fatal error where a project asks whether the package can be used, and its Python has no torch."""
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.22)\nproject(optional LANGUAGES CXX)\nfind_package(zeropage CONFIG QUIET)\n"
        'message("found: ${zeropage_FOUND} because ${zeropage_NOT_FOUND_MESSAGE}")\n'
    )
    run("cmake", "--install", BUILD, "--prefix", tmp_path / "prefix")
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "empty")
    named = [
        f"-DCMAKE_PREFIX_PATH={tmp_path / 'prefix'}",
        f"-DPython_EXECUTABLE={tmp_path / 'empty' / 'bin' / 'python'}",
    ]
    shown = run("cmake", "-S", tmp_path, "-B", tmp_path / "build", *named, package=tmp_path)
    assert re.search("found: (0|FALSE) because zeropage found no libtorch", shown), shown


def test_the_guide_shows_the_program_that_is_tested():
    """Catches a guide whose program is no longer the one that works."""
    guide = (ROOT / "docs" / "cpp.md").read_text()
    for name in ("CMakeLists.txt", "train.cc", "ds_config.json"):
        assert (ROOT / "tests" / "cpp_package" / name).read_text() in guide, f"docs/cpp.md shows another {name}"


def test_the_libtorch_guide_shows_the_loop_that_is_tested():
    """Catches a loop in the guide that is not the one compared with plain libtorch."""
    tested = (ROOT / "zeropage" / "cpp" / "from_libtorch_test.cc").read_text().split("  // ----------\n")[1]
    assert f"```cpp\n{tested}```" in (ROOT / "docs" / "from-libtorch.md").read_text()
