"""What a rank does in test_accelerate.py."""

import copy
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DeepSpeedPlugin
from accelerate.utils.deepspeed import DummyOptim, DummyScheduler
from tiny import OFFLOAD, PLAIN, Tokens, ds_config, forget_state, llama, weights_of

CLIPPING = 0.5
ACCUMULATION = 2
STEPS = 4


def _config(stage: int, **zero: Any) -> dict[str, Any]:
    """Clipping and batch sizes are the program's here; so are optimizer and schedule, unless it makes dummies of
    them."""
    config = ds_config(stage, stage3_param_persistence_threshold=0, **zero)
    config |= {"gradient_clipping": CLIPPING, "gradient_accumulation_steps": ACCUMULATION}
    del config["optimizer"]
    return config


def _accelerator(config: dict[str, Any] | None) -> Accelerator:
    forget_state()
    plugin = None if config is None else DeepSpeedPlugin(hf_ds_config=copy.deepcopy(config))
    return Accelerator(gradient_accumulation_steps=ACCUMULATION, deepspeed_plugin=plugin, cpu=config is None)


def _prepare(accelerator: Accelerator, config: dict[str, Any] | None) -> tuple[Any, ...]:
    model = llama()
    loader = torch.utils.data.DataLoader(Tokens(2 * 2 * ACCUMULATION * STEPS * 2), batch_size=2)
    if config is not None and "optimizer" in config:
        optimizer = DummyOptim(model.parameters(), lr=1e-2, weight_decay=0.01)
        schedule = DummyScheduler(
            optimizer, lr_scheduler_callable=lambda made: torch.optim.lr_scheduler.LambdaLR(made, _rate_of_engine)
        )
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _rate)
    return accelerator.prepare(model, optimizer, loader, schedule)


def _rate(calls: int) -> float:
    """Accelerate calls the program's schedule once per rank and step."""
    return 1 / (1 + calls / 2)


def _rate_of_engine(steps: int) -> float:
    return 1 / (1 + steps)


def train_everywhere(folder: str) -> dict[str, Any]:
    """Accelerate's own loop with each configuration. Then the state is saved, two steps are made, and the same two
    steps are made again from the saved state."""
    adamw = {"type": "AdamW", "params": {"lr": "auto", "weight_decay": "auto"}}
    runs = {
        PLAIN: None,
        "2": _config(2),
        "3": _config(3),
        "3 offload": _config(3, **OFFLOAD),
        "2 dummies": {**_config(2), "optimizer": adamw},
    }
    return {name: _run(config, Path(folder) / name) for name, config in runs.items()}


def _run(config: dict[str, Any] | None, folder: Path) -> dict[str, Any]:
    accelerator = _accelerator(config)
    model, optimizer, loader, schedule = _prepare(accelerator, config)
    batches = iter(loader)
    losses: list[float] = []
    norms: list[float] = []

    def step() -> None:
        for _ in range(ACCUMULATION):
            with accelerator.accumulate(model):
                loss = model(**next(batches)).loss
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    norms.append(float(accelerator.clip_grad_norm_(model.parameters(), CLIPPING)))
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                losses.append(accelerator.gather(loss.detach()[None]).mean().item())

    for _ in range(STEPS):
        step()
    accelerator.save_state(str(folder))
    saved = len(losses)
    step()
    first = losses[saved:]
    accelerator.load_state(str(folder))
    batches = iter(loader)
    for _ in range(ACCUMULATION * STEPS):
        next(batches)
    step()
    state = accelerator.get_state_dict(model)
    if accelerator.is_main_process:
        assert state.keys() == accelerator.unwrap_model(model).state_dict().keys()
    accelerator.end_training()
    return {
        "losses": losses[: saved + ACCUMULATION],
        "again": [a - b for a, b in zip(first, losses[saved + ACCUMULATION :], strict=True)],
        "norms": norms[: STEPS + 1],
        "rates": [group["lr"] for group in optimizer.param_groups],
        "weights": weights_of(accelerator.unwrap_model(model)),
    }
