"""What the tests with the libraries of Hugging Face and others share: the package `deepspeed` on the import path of the
ranks."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from zeropage import alias


@pytest.fixture(scope="module")
def with_alias(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Processes that a test starts find the package `deepspeed`, with its metadata; this one does not. No library asks
    a network."""
    site = tmp_path_factory.mktemp("alias") / "site"
    alias.write_metadata(site)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), str(site), str(alias.FOLDER)]))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("TOKENIZERS_PARALLELISM", "false")
        patch.setenv(
            "ZEROPAGE_DEVICE", "cpu"
        )  # module-wide fixtures start ranks before conftest.py's fixture hides an accelerator
        yield
