"""What all Python tests share."""

import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "examples"))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs a GPU")
    config.addinivalue_line("markers", "slow: takes more than ten seconds")


@pytest.fixture(autouse=True)
def one_thread_per_rank():
    """Ranks are threads or processes that share the cores; torch's own threads would only make them wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch):
    """Tests decide themselves which ranks there are."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT", "ZEROPAGE_JOB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
