"""What a rank does in test_peft.py."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tiny import Tokens, arguments, configurations, history, llama, weights_of
from transformers import Trainer


def train_everywhere(folder: str) -> dict[str, Any]:
    """LoRA on a frozen base with each configuration: what was logged, the base as it is afterwards, and the adapter as
    it was saved."""
    results = {}
    for name, config in configurations().items():
        place = Path(folder) / name
        torch.manual_seed(5)
        model = get_peft_model(
            llama(), LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        )
        trainer = Trainer(model=model, args=arguments(config, place), train_dataset=Tokens(64))
        trainer.train()
        trainer.save_model(str(place / "adapter"))
        results[name] = {**history(trainer, "loss", "grad_norm"), "weights": weights_of(trainer.model)}
        if trainer.is_world_process_zero():
            results[name]["adapter"] = load_file(place / "adapter" / "adapter_model.safetensors")
    return results
