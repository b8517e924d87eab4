"""What other programs get from an engine or a checkpoint: state dicts and safetensors files, read by the stock
library."""

import copy
from typing import Any

import pytest
import torch
from test_checkpoint import TiedAndFrozen, engine_of, train
from training import config_of

import zeropage
from zeropage.testing import run_ranks
from zeropage.utils import zero_to_fp32

safetensors = pytest.importorskip("safetensors.torch")
BF16: dict[str, Any] = {"bf16": {"enabled": True}}


def saved_by(engine: Any, folder: Any) -> dict[str, torch.Tensor]:
    engine.save_16bit_model(folder)
    return safetensors.load_file(folder / "model.safetensors")


@pytest.mark.parametrize("two_sided", (False, True))
def test_the_engine_exports_its_model(tmp_path, two_sided):
    """Catches parameters that are absent, transposed, saved twice or from other steps, and gathers that only one rank
    takes part in."""

    def run(rank: int, communicator: Any) -> None:
        engine, *_ = zeropage.initialize(model=copy.deepcopy(model), config=config_of(3, batch=2, **BF16))
        engine.backward(engine(torch.ones(1, 4, dtype=torch.bfloat16)))
        engine.step()
        whole = engine.module_state_dict()
        with zeropage.zero.GatheredParameters(list(engine.module.parameters())):
            for name, tensor in engine.module.state_dict().items():
                assert torch.equal(whole[name], tensor) and whole[name].dtype == tensor.dtype, name
        assert whole["second.weight"] is whole["first.weight"]
        consolidated = engine._zero3_consolidated_16bit_state_dict()
        assert (consolidated is None) == (rank != 0)
        engine.save_16bit_model(tmp_path)
        communicator.barrier()
        stored = safetensors.load_file(tmp_path / "model.safetensors")
        assert stored.keys() == whole.keys() - {"second.weight"}
        for name, tensor in stored.items():
            assert torch.equal(tensor, whole[name]) and tensor.dtype == whole[name].dtype, name
        trained = engine.module_state_dict(exclude_frozen_parameters=True)
        assert whole.keys() - trained.keys() == {"frozen", "table"}

    model = TiedAndFrozen(1.0)
    model.register_buffer("seen", torch.arange(3))
    run_ranks(2, run, two_sided=two_sided)


def test_a_file_that_cannot_be_written_is_an_error_on_all_ranks(tmp_path):
    """Catches ranks that wait for gathers which rank 0 does not start any more, and an incomplete file."""

    def run(rank: int, communicator: Any) -> None:
        engine = engine_of(0, stage=3)
        with pytest.raises(zeropage.errors.CheckpointError, match="was not written(.|\n)*rank 0"):
            engine.save_16bit_model(tmp_path / "file")
        train(engine, 2, rank, range(1))

    (tmp_path / "file").write_text("in the way")
    run_ranks(2, run, two_sided=True)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("lazy", (False, True))
def test_fp32_comes_from_the_masters_of_any_ranks(tmp_path, lazy):
    """Catches 16-bit values where more precise ones exist, and tensors in memory order instead of their own."""

    def run(rank: int, communicator: Any) -> None:
        engine, *_ = zeropage.initialize(model=copy.deepcopy(model), config=config_of(2, batch=2, **BF16))
        engine.save_checkpoint(tmp_path)

    model = TiedAndFrozen(1.0)
    with torch.no_grad():
        model.first.weight += torch.rand(4, 4) / 1000
    model.register_buffer("seen", torch.arange(3))
    run_ranks(2, run)
    state = zero_to_fp32.get_fp32_state_dict_from_zero_checkpoint(tmp_path, lazy_mode=lazy)
    for name, tensor in model.state_dict().items():
        found = state[name]
        assert found.shape == tensor.shape
        assert torch.equal(found.contiguous(), tensor), name
    files = zero_to_fp32.convert_zero_checkpoint_to_fp32_state_dict(tmp_path, tmp_path / "out", max_shard_size="60B")
    assert len(files) > 2
    stored = {name: tensor for file in files[:-1] for name, tensor in safetensors.load_file(file).items()}
    assert stored.keys() == model.state_dict().keys() - {"second.weight"}
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in stored.items())
    fresh = zero_to_fp32.load_state_dict_from_zero_checkpoint(TiedAndFrozen(5.0), tmp_path)
    assert torch.equal(fresh.turned, model.turned) and torch.equal(fresh.frozen, model.frozen)


def test_transformers_loads_an_export(tmp_path):
    """Catches names, shapes, an index or a tied weight that transformers does not take."""
    transformers = pytest.importorskip("transformers")
    sizes = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=32, vocab_size=64, n_positions=16)
    tokens = torch.arange(12).view(1, 12)

    def run(rank: int, communicator: Any) -> torch.Tensor:
        engine, *_ = zeropage.initialize(model=copy.deepcopy(model), config=config_of(3, batch=2))
        engine.backward(engine(tokens, labels=tokens).loss)
        engine.step()
        engine.save_checkpoint(tmp_path)
        engine.eval()
        return engine(tokens).logits.detach().clone()

    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(sizes)
    logits = run_ranks(2, run)[0]
    zero_to_fp32.convert_zero_checkpoint_to_fp32_state_dict(tmp_path, tmp_path / "out", max_shard_size="50KB")
    sizes.save_pretrained(tmp_path / "out")
    loaded = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "out").eval()
    assert torch.equal(loaded(tokens).logits, logits)
