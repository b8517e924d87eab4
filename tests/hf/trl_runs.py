"""What a rank does in test_trl.py."""

import copy
from pathlib import Path
from typing import Any

from datasets import Dataset
from tiny import VOCABULARY, configurations, forget_state, history, llama, weights_of
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

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


def make_model(folder: Path) -> str:
    """A model and a tokenizer of words as a folder that from_pretrained reads."""
    vocabulary = {"<bos>": 0, "<eos>": 1, "<pad>": 2, **{f"w{i}": i for i in range(3, VOCABULARY)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")
    fast.save_pretrained(folder)
    llama().save_pretrained(folder)
    return str(folder)


def _sft(model: str, config: dict[str, Any] | None, folder: Path) -> dict[str, Any]:
    data = Dataset.from_dict({"text": [_words(5, start, 10) for start in range(40)]})
    arguments = SFTConfig(str(folder), max_length=16, deepspeed=copy.deepcopy(config), use_cpu=config is None, model_init_kwargs={"dtype": "float32"}, **_OPTIONS)
    trainer = SFTTrainer(model, args=arguments, train_dataset=data)
    trainer.train()
    return {**history(trainer, "loss", "grad_norm"), "weights": weights_of(trainer.model)}


def train_everywhere(model: str, folder: str) -> dict[str, dict[str, Any]]:
    """The trainer with each configuration; the model is made by from_pretrained, under zero.Init at stage 3."""
    results = {}
    for name, config in configurations().items():
        forget_state()
        results[name] = _sft(model, config, Path(folder) / name)
    return results
