"""What a rank does in test_scenarios.py: more of what programs do with the Trainer, all in one process."""

from pathlib import Path
from typing import Any

import torch
from tiny import PLAIN, Tokens, arguments, ds_config, history, llama, weights_of
from transformers import LlamaForCausalLM, Trainer

# Every parameter has its own page, and only few are resident.
TIGHT = {"stage3_param_persistence_threshold": 0, "stage3_max_live_parameters": 4096}


def _train(
    config: dict[str, Any] | None, folder: Path, model: torch.nn.Module | None = None, **changes: Any
) -> dict[str, Any]:
    trainer = Trainer(model=model or llama(), args=arguments(config, folder, **changes), train_dataset=Tokens(64))
    trainer.train()
    return {**history(trainer, "loss", "grad_norm"), "weights": weights_of(trainer.model)}


def in_bf16(folder: Path) -> dict[str, Any]:
    configs = {PLAIN: None, "2": ds_config(2), "3": ds_config(3, **TIGHT)}
    return {
        name: _train(config, folder / name, bf16=True, use_cpu=True, max_steps=6) for name, config in configs.items()
    }


def on_a_drive(folder: Path) -> dict[str, Any]:
    (folder / "drive").mkdir(exist_ok=True)
    place = {"device": "nvme", "nvme_path": str(folder / "drive"), "buffer_count": 4}
    config = ds_config(3, **TIGHT, offload_optimizer=place, offload_param=place)
    return {PLAIN: _train(None, folder), "3": _train(config, folder)}


def resized(folder: Path) -> dict[str, Any]:
    """The model of the folder `model`, with four more tokens; at stage 3 it is made under zero.Init."""
    results = {}
    for name, config in {PLAIN: None, "2": ds_config(2), "3": ds_config(3, **TIGHT)}.items():
        args = arguments(config, folder / name)
        model = LlamaForCausalLM.from_pretrained(folder / "model")
        torch.manual_seed(0)
        model.resize_token_embeddings(68, mean_resizing=False)
        trainer = Trainer(model=model, args=args, train_dataset=Tokens(64))
        trainer.train()
        results[name] = {**history(trainer, "loss"), "weights": weights_of(trainer.model)}
    return results


class Quantized(torch.nn.Module):
    """A linear layer as quantizing libraries make them: codes of uint8 and one scale per row, frozen, with a trained
    adapter of rank 4."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        scale = weight.abs().amax(1, keepdim=True) / 127
        self.codes = torch.nn.Parameter((weight / scale).round().add(128).to(torch.uint8), requires_grad=False)
        self.scale = torch.nn.Parameter(scale, requires_grad=False)
        self.down = torch.nn.Parameter(torch.randn(4, linear.in_features) / 8)
        self.up = torch.nn.Parameter(torch.zeros(linear.out_features, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        base = torch.nn.functional.linear(x, (self.codes.to(x.dtype) - 128) * self.scale.to(x.dtype))
        return base + x @ self.down.t() @ self.up.t()


def on_a_quantized_base(folder: Path) -> dict[str, Any]:
    results = {}
    for name, config in {PLAIN: None, "3": ds_config(3, **TIGHT)}.items():
        model = llama()
        model.requires_grad_(False)
        for layer in model.model.layers:
            for projection in ("q_proj", "v_proj"):
                setattr(layer.self_attn, projection, Quantized(getattr(layer.self_attn, projection)))
        results[name] = _train(config, folder / name, model)
    return results


ELEMENTWISE = (
    "adamw_torch",
    "adamw_torch_fused",
    "sgd",
    "adagrad",
    "rmsprop",
    "schedule_free_adamw",
    "schedule_free_radam",
    "schedule_free_sgd",
)


def optimizers(folder: Path) -> dict[str, Any]:
    """The names of optimizers that transformers can make here: those that are elementwise, and one that is not."""
    config = ds_config(3, **TIGHT)
    del config["optimizer"]
    elementwise: dict[str, Any] = {PLAIN: {}, "3": {}}
    for name in ELEMENTWISE:
        for row, of_row in ((PLAIN, None), ("3", config)):
            elementwise[row][name] = _train(of_row, folder, optim=name, max_steps=3, warmup_steps=0)
    adafactor = {
        row: _train(of_row, folder, optim="adafactor", max_steps=3, warmup_steps=0)
        for row, of_row in ((PLAIN, None), ("3", config))
    }
    return {"elementwise": elementwise, "adafactor": adafactor}


def saved_half_way(folder: Path) -> dict[str, Any]:
    """Makes six steps and saves after the second; test_scenarios.py resumes from it with another number of ranks."""
    saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6}
    return {
        PLAIN: _train(None, folder / PLAIN, max_steps=6),
        "3": _train(ds_config(3, **TIGHT), folder / "3", **saving),
    }


def everything(folder: str) -> dict[str, Any]:
    """Each scenario by name: its runs, which have to agree."""
    results = {}
    for scenario in (in_bf16, on_a_drive, resized, on_a_quantized_base, optimizers, saved_half_way):
        place = Path(folder) / scenario.__name__
        place.mkdir(exist_ok=True)
        results[scenario.__name__] = scenario(place)
    return results


def continue_alone(folder: str) -> dict[str, Any]:
    """The rest of saved_half_way on one rank, which takes the micro batches of both."""
    args = arguments(ds_config(3, **TIGHT), Path(folder) / "alone", max_steps=6, gradient_accumulation_steps=4)
    trainer = Trainer(model=llama(), args=args, train_dataset=Tokens(64))
    trainer.train(resume_from_checkpoint=str(Path(folder) / "saved_half_way" / "3" / "checkpoint-2"))
    return {**history(trainer, "loss"), "weights": weights_of(trainer.model)}
