"""What a rank does in test_trainer.py."""

from pathlib import Path
from typing import Any

from tiny import Tokens, arguments, configurations, history, llama, weights_of
from transformers import Trainer


def train_everywhere(folder: str) -> dict[str, Any]:
    """The Trainer with each configuration, one after the other in this process."""
    results = {}
    for name, config in configurations().items():
        trainer = Trainer(
            model=llama(),
            args=arguments(
                config, Path(folder) / name, eval_strategy="steps", eval_steps=2, per_device_eval_batch_size=2
            ),
            train_dataset=Tokens(64),
            eval_dataset=Tokens(8, seed=2),
        )
        trainer.train()
        seen = history(trainer, "loss", "grad_norm", "eval_loss", "learning_rate")
        results[name] = {**seen, "weights": weights_of(trainer.model)}
    return results
