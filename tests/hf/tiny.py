"""Models, data and configurations for the tests with transformers: tiny, random, made on the spot."""

import copy
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

VOCABULARY = 64
LENGTH = 12
PLAIN = "plain"  # a run without `deepspeed`, on the same ranks: DistributedDataParallel


def llama_config(**changes: Any) -> LlamaConfig:
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    return LlamaConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        **(sizes | changes),
    )


def llama(seed: int = 0, **changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(llama_config(**changes))


class Tokens(Dataset):
    """Random tokens with a rule, [LENGTH] each; the same for every rank."""

    def __init__(self, size: int, seed: int = 1):
        generator = torch.Generator().manual_seed(seed)
        start = torch.randint(3, VOCABULARY, (size, 1), generator=generator)
        self._tokens = 3 + (start + 5 * torch.arange(LENGTH)) % (VOCABULARY - 3)

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self._tokens[index], "labels": self._tokens[index]}


def ds_config(stage: int, **zero: Any) -> dict[str, Any]:
    """As the guides of transformers write it: "auto" where the Trainer fills in. Without a schedule, so that the
    Trainer's own runs."""
    return {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "fp16": {
            "enabled": "auto",
            "loss_scale": 0,
            "initial_scale_power": 16,
            "loss_scale_window": 1000,
            "hysteresis": 2,
        },
        "bf16": {"enabled": "auto"},
        "optimizer": {
            "type": "AdamW",
            "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"},
        },
        "zero_optimization": {
            "stage": stage,
            "reduce_bucket_size": "auto",
            "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto",
            "stage3_gather_16bit_weights_on_model_save": True,
            "overlap_comm": True,
            "contiguous_gradients": True,
            **zero,
        },
    }


OFFLOAD = {
    "offload_optimizer": {"device": "cpu", "pin_memory": True},
    "offload_param": {"device": "cpu", "pin_memory": True},
}


def configurations() -> dict[str, dict[str, Any] | None]:
    """Runs that have to agree: name -> configuration, or None for plain."""
    small = {"stage3_param_persistence_threshold": 0}
    return {PLAIN: None, "2": ds_config(2), "3": ds_config(3, **small), "3 offload": ds_config(3, **small, **OFFLOAD)}


def forget_state() -> None:
    """The state that accelerate keeps in its classes: the next run of this process begins without it."""
    from accelerate.state import AcceleratorState, GradientState
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def arguments(config: dict[str, Any] | None, folder: Path, **changes: Any) -> TrainingArguments:
    forget_state()
    options = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 4,
        "learning_rate": 1e-2,
        "warmup_steps": 2,
        "lr_scheduler_type": "linear",
        "weight_decay": 0.0,  # transformers leaves it out for norms, and an optimizer of the configuration does not
        "max_grad_norm": 0.5,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "seed": 3,
        "disable_tqdm": True,
        "use_cpu": config is None,
        "deepspeed": copy.deepcopy(config),
    }
    return TrainingArguments(**(options | changes))


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Whole values by name; each is fetched where it is read."""
    return {name: parameter.detach().float().cpu().clone() for name, parameter in model.named_parameters()}


def history(trainer: Trainer, *keys: str) -> dict[str, list[float]]:
    return {key: [entry[key] for entry in trainer.state.log_history if key in entry] for key in keys}


def assert_alike(runs: dict[str, Any], within: float = 2e-5) -> None:
    """Every run of `runs` (name -> nested dicts and lists of numbers and tensors) is as the plain one."""
    for name, run in runs.items():
        if name != PLAIN:
            _assert_close(run, runs[PLAIN], name, within)


def _assert_close(actual: Any, expected: Any, where: str, within: float) -> None:
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys(), f"{where}: {actual.keys() ^ expected.keys()}"
        for key, value in expected.items():
            _assert_close(actual[key], value, f"{where}: {key}", within)
    elif isinstance(expected, list):
        assert len(actual) == len(expected), f"{where}: {len(actual)} values for {len(expected)}"
        for index, value in enumerate(expected):
            _assert_close(actual[index], value, f"{where}[{index}]", within)
    elif isinstance(expected, str):
        assert actual == expected, where
    else:
        torch.testing.assert_close(
            torch.as_tensor(actual),
            torch.as_tensor(expected),
            rtol=within,
            atol=within,
            msg=lambda text: f"{where}: {text}",
        )
