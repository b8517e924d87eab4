"""Trains a tiny Llama with transformers' Trainer: ZeRO stage 3, state in host memory. Run it on two ranks with

torchrun --nproc_per_node=2 examples/hf_trainer.py          (after: python -m zeropage alias install)
"""

import argparse

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

DS_CONFIG = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "bf16": {"enabled": "auto"},
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "weight_decay": "auto"}},
    "zero_optimization": {
        "stage": 3,
        "offload_optimizer": {"device": "cpu"},
        "offload_param": {"device": "cpu"},
        "stage3_gather_16bit_weights_on_model_save": True,
    },
}
VOCABULARY = 256


class Text(torch.utils.data.Dataset):
    """The bytes of this file, in pieces of 64."""

    def __init__(self) -> None:
        with open(__file__, "rb") as file:
            data = torch.frombuffer(bytearray(file.read()), dtype=torch.uint8).long()
        self._pieces = data[: len(data) // 64 * 64].view(-1, 64)

    def __len__(self) -> int:
        return len(self._pieces)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self._pieces[index], "labels": self._pieces[index]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="runs/hf_trainer", help="folder of the trained model")
    parser.add_argument("--steps", type=int, default=30, help="optimizer steps")
    options = parser.parse_args()

    arguments = TrainingArguments(
        options.output,
        deepspeed=DS_CONFIG,
        max_steps=options.steps,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=3e-3,
        logging_steps=10,
        save_strategy="no",
        report_to="none",
    )
    shape = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
    )
    trainer = Trainer(model=LlamaForCausalLM(shape), args=arguments, train_dataset=Text())
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main()
