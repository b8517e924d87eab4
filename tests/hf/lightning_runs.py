"""What a rank does in test_lightning.py."""

import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from tiny import PLAIN, Tokens, llama, weights_of


class OnCpus(DeepSpeedStrategy):
    """Lightning's strategy unchanged, except for its two checks for a GPU."""

    def setup_environment(self) -> None:
        super(DeepSpeedStrategy, self).setup_environment()

    def setup_distributed(self) -> None:
        self.set_world_ranks()
        self._init_deepspeed_distributed()


class Language(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = llama()
        self.losses: list[float] = []

    def training_step(self, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
        loss = self.model(**batch).loss
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch: dict[str, torch.Tensor], index: int) -> None:
        self.log("validation", self.model(**batch).loss, sync_dist=True)

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _loader(seed: int) -> torch.utils.data.DataLoader:
    return torch.utils.data.DataLoader(Tokens(32, seed), batch_size=2)


def _fit(strategy: Any, folder: Path, steps: int, resume: Path | None = None) -> tuple[Language, Trainer]:
    seed_everything(1, verbose=False)
    module = Language()
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy=strategy,
        max_steps=steps,
        accumulate_grad_batches=2,
        gradient_clip_val=0.5,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=2,
    )
    trainer.fit(module, _loader(1), _loader(2), ckpt_path=None if resume is None else str(resume))
    return module, trainer


def train_everywhere(folder: str) -> dict[str, Any]:
    """Lightning's Trainer with each strategy: losses, validation, weights, and a run that resumes from a checkpoint."""
    os.environ |= {"GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "lightning"}
    offload = {"offload_optimizer": True, "offload_parameters": True}
    strategies = {
        PLAIN: lambda: DDPStrategy(process_group_backend="gloo"),
        "2": lambda: OnCpus(stage=2, process_group_backend="gloo"),
        "3": lambda: OnCpus(stage=3, process_group_backend="gloo"),
        "3 offload": lambda: OnCpus(stage=3, process_group_backend="gloo", **offload),
    }
    results = {}
    for name, make in strategies.items():
        place = Path(folder) / name
        module, trainer = _fit(make(), place, steps=4)
        validation = trainer.validate(module, _loader(2), verbose=False)[0]["validation"]
        results[name] = {"losses": module.losses, "validation": validation, "weights": weights_of(module)}
        half, trainer = _fit(make(), place, steps=2)
        trainer.save_checkpoint(place / "half.ckpt")
        rest, _ = _fit(make(), place, steps=4, resume=place / "half.ckpt")
        results[name] |= {"rest": rest.losses, "weights of both": weights_of(rest)}
    return results
