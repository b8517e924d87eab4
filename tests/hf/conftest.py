"""What the tests with the libraries of Hugging Face and others share: the package `deepspeed` on the import path of the ranks."""

import os
from pathlib import Path

import pytest

from zeropage import alias


@pytest.fixture
def with_alias(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that a test starts find the package `deepspeed`, with its metadata; this one does not. No library asks a network."""
    alias.write_metadata(tmp_path / "site")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), str(tmp_path / "site"), str(alias.FOLDER)]))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
