"""What all Python tests share."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "examples"))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "gpu: runs on an accelerator: a GPU, or the simulated device where there is none"
    )
    config.addinivalue_line("markers", "cuda: needs a CUDA GPU: tests of nvcc, NCCL or CUDA's allocator")
    config.addinivalue_line("markers", "simulated: only for the simulated device")
    config.addinivalue_line("markers", "slow: takes more than ten seconds")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("simulated") or item.get_closest_marker("cuda"):
            item.add_marker("gpu")
        if item.get_closest_marker("simulated") and torch.cuda.is_available():
            item.add_marker(
                pytest.mark.skip(reason="this machine has a GPU, and the simulated device is for those without")
            )
        if item.get_closest_marker("cuda") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="this machine has no CUDA GPU"))


@pytest.fixture(autouse=True)
def one_thread_per_rank():
    """Ranks are threads or processes that share the cores; torch's own threads would only make them wait for each
    other."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def gradients_stay_on():
    """A test that leaves gradients switched off would fail another one."""
    yield
    was_on = torch.is_grad_enabled()
    torch.set_grad_enabled(True)
    assert was_on, "gradients were switched off when this test ended"


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch):
    """Removes the variables of a launcher: each test chooses its ranks itself."""
    for name in (
        "RANK",
        "LOCAL_RANK",
        "WORLD_SIZE",
        "LOCAL_WORLD_SIZE",
        "LOCAL_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
        "ZEROPAGE_JOB_TOKEN",
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def accelerator_of_test(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    """Tests marked `gpu` have an accelerator, and fail if the simulated one has found a fault. Other tests do not see
    it."""
    if request.node.get_closest_marker("gpu") is None:
        monkeypatch.setenv("ZEROPAGE_DEVICE", "cpu")
        yield
        return
    import accelerator
    import simulated_device

    monkeypatch.delenv("ZEROPAGE_DEVICE", raising=False)
    monkeypatch.setenv(accelerator.VARIABLE, "1")
    accelerator.load()
    if accelerator.SIMULATED:
        simulated_device.set_kernels(True)
    with simulated_device.visible(True):
        yield
        accelerator.check()


@pytest.fixture(scope="module")
def with_alias(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """For the tests of tests/hf: the processes that a test starts find the package `deepspeed` and its metadata. The
    process of the test does not find them. The libraries do not use the network."""
    from zeropage import alias

    site = tmp_path_factory.mktemp("alias") / "site"
    alias.write_metadata(site)
    paths = [str(ROOT / "tests" / "hf"), str(site), str(alias.FOLDER)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("TOKENIZERS_PARALLELISM", "false")
        # Fixtures of a module start ranks before `accelerator_of_test` hides the accelerator.
        patch.setenv("ZEROPAGE_DEVICE", "cpu")
        yield
