"""What a rank does in test_trl.py."""

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, load_from_disk
from tiny import PLAIN, VOCABULARY, configurations, forget_state, history, llama, llama_config, weights_of
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaForSequenceClassification, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

_OPTIONS = {
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "max_steps": 3,
    "learning_rate": 1e-2,
    "weight_decay": 0.0,
    "max_grad_norm": 0.5,
    "warmup_steps": 1,
    "lr_scheduler_type": "linear",
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "seed": 3,
    "disable_tqdm": True,
    "bf16": False,
    "gradient_checkpointing": False,
}


def _words(rule: int, start: int, count: int) -> str:
    return " ".join(f"w{3 + (start + rule * i) % (VOCABULARY - 3)}" for i in range(count))


def _preferences() -> Dataset:
    starts = range(40)
    return Dataset.from_dict(
        {
            "prompt": [_words(5, start, 4) for start in starts],
            "chosen": [" " + _words(5, start + 20, 5) for start in starts],
            "rejected": [" " + _words(7, start, 5) for start in starts],
        }
    )


def make_model(folder: str) -> str:
    """A model and a tokenizer of words as a folder that from_pretrained reads; in its folder "reward" a model with one
    label."""
    place = Path(folder)
    vocabulary = {"<bos>": 0, "<eos>": 1, "<pad>": 2, **{f"w{i}": i for i in range(3, VOCABULARY)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")
    fast.save_pretrained(place)
    llama().save_pretrained(place)
    torch.manual_seed(0)
    LlamaForSequenceClassification(llama_config(num_labels=1)).save_pretrained(place / "reward")
    fast.save_pretrained(place / "reward")
    _preferences().save_to_disk(
        f"{place}/preferences"
    )  # the main rank passes log probabilities to the others through its folder
    return str(place)


def _sft(model: str, config: dict[str, Any] | None, folder: Path) -> dict[str, Any]:
    data = Dataset.from_dict({"text": [_words(5, start, 10) for start in range(40)]})
    arguments = SFTConfig(
        str(folder),
        max_length=16,
        deepspeed=copy.deepcopy(config),
        use_cpu=config is None,
        model_init_kwargs={"dtype": "float32"},
        **_OPTIONS,
    )
    trainer = SFTTrainer(model, args=arguments, train_dataset=data)
    trainer.train()
    return {**history(trainer, "loss", "grad_norm"), "weights": weights_of(trainer.model)}


def _dpo(model: str, config: dict[str, Any] | None, folder: Path, precompute: bool) -> dict[str, Any]:
    data = load_from_disk(f"{model}/preferences")
    arguments = DPOConfig(
        str(folder),
        deepspeed=copy.deepcopy(config),
        use_cpu=config is None,
        model_init_kwargs={"dtype": "float32"},
        precompute_ref_log_probs=precompute,
        **_OPTIONS,
    )
    trainer = DPOTrainer(model, args=arguments, train_dataset=data)
    trainer.train()
    return {**history(trainer, "loss", "grad_norm", "rewards/margins"), "weights": weights_of(trainer.model)}


def _reward(model: str, config: dict[str, Any] | None, folder: Path) -> dict[str, Any]:
    arguments = RewardConfig(
        str(folder),
        max_length=16,
        deepspeed=copy.deepcopy(config),
        use_cpu=config is None,
        model_init_kwargs={"dtype": "float32"},
        **_OPTIONS,
    )
    trainer = RewardTrainer(f"{model}/reward", args=arguments, train_dataset=load_from_disk(f"{model}/preferences"))
    trainer.train()
    return {**history(trainer, "loss", "grad_norm", "accuracy", "margin"), "weights": weights_of(trainer.model)}


def _even_words(completions: list[str], **_: Any) -> list[float]:
    """The reward of a completion: the share of its words with an even number."""
    numbers = [[int(word[1:]) for word in completion.split() if word.startswith("w")] for completion in completions]
    return [sum(number % 2 == 0 for number in each) / max(len(each), 1) for each in numbers]


def _grpo(model: str, config: dict[str, Any] | None, folder: Path) -> dict[str, Any]:
    """Two completions of every prompt are sampled, with a reference model in addition to the trained one."""
    arguments = GRPOConfig(
        str(folder),
        num_generations=2,
        max_completion_length=6,
        beta=0.1,
        deepspeed=copy.deepcopy(config),
        use_cpu=config is None,
        model_init_kwargs={"dtype": "float32"},
        **_OPTIONS,
    )
    prompts = Dataset.from_dict({"prompt": [_words(5, start, 4) for start in range(40)]})
    trainer = GRPOTrainer(model, reward_funcs=_even_words, args=arguments, train_dataset=prompts)
    trainer.train()
    return {**history(trainer, "loss", "grad_norm", "reward", "kl"), "weights": weights_of(trainer.model)}


def train_everywhere(model: str, folder: str) -> dict[str, dict[str, Any]]:
    """Each trainer with its configurations: trainer -> configuration -> what was seen."""
    torch.set_num_threads(1)
    known = configurations()
    runs: dict[str, tuple[Callable[..., dict[str, Any]], list[str]]] = {
        "sft": (_sft, list(known)),
        "dpo": (functools.partial(_dpo, precompute=False), [PLAIN, "2", "3"]),
        "reward": (_reward, [PLAIN, "2", "3"]),
        "grpo": (_grpo, [PLAIN, "2", "3"]),
        "dpo precomputed": (functools.partial(_dpo, precompute=True), [PLAIN, "3"]),
    }
    results: dict[str, dict[str, Any]] = {}
    for trainer, (train, names) in runs.items():
        results[trainer] = {}
        for name in names:
            forget_state()
            results[trainer][name] = train(model, known[name], Path(folder) / name)
    return results
