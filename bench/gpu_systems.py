"""The systems that `gpu.py` compares: a training step of plain PyTorch, FSDP2, DeepSpeed and Zeropage, all with the
same model, batch and initial values.

Each function returns a `System`: the step in two halves, so that the part after the backward can be timed separately.
"""

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from gpt import Gpt, GptConfig  # noqa: E402

MODELS = {
    "tiny": GptConfig(vocabulary=512, context=32, layers=2, width=64, heads=2, branch_gain=1.0, output_gain=1.0),
    "350M": GptConfig(
        vocabulary=50304, context=1024, layers=24, width=1024, heads=16, branch_gain=1.0, output_gain=1.0
    ),
    "1.3B": GptConfig(
        vocabulary=50304, context=1024, layers=24, width=2048, heads=16, branch_gain=1.0, output_gain=1.0
    ),
}
ROWS_OF_BATCH = {"tiny": 2, "350M": 16, "1.3B": 8}  # sequences per rank and step: 8k to 16k tokens on the large ones
ADAMW: dict[str, Any] = {"lr": 1e-4, "betas": (0.9, 0.95), "weight_decay": 0.1}
CLIPPING = 1.0
SEED = 1234


@dataclass
class System:
    """One system to measure. `backward()` runs forward and backward and returns the loss; `step()` does the rest of a
    training step."""

    backward: Callable[[], torch.Tensor]
    step: Callable[[], None]
    predicted_bytes: int | None = None  # planned model state on the device, if there is a plan


def model_on(name: str, device: torch.device, dtype: torch.dtype = torch.float32) -> Gpt:
    """The model with values that depend only on the seed and the device. Initialised on the device, because the host
    would take seconds."""
    with torch.device("meta"):
        model = Gpt(MODELS[name])
    model = model.to_empty(device=device)
    torch.manual_seed(SEED)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("norm.weight"):
                nn.init.ones_(parameter)
            elif key.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.normal_(parameter, std=0.02)
    return model.to(dtype)


def batch_on(name: str, device: torch.device, rank: int) -> torch.Tensor:
    """tokens [rows, context + 1], different on every rank"""
    config = MODELS[name]
    generator = torch.Generator().manual_seed(SEED + rank)
    tokens = torch.randint(config.vocabulary, (ROWS_OF_BATCH[name], config.context + 1), generator=generator)
    return tokens.to(device)


def plain_masters(name: str, device: torch.device, batch: torch.Tensor) -> System:
    """bf16 parameters with hand-written fp32 masters: gradients are converted, clipped and applied by fused AdamW, and
    the result is rounded back."""
    model = model_on(name, device)
    masters = [parameter.detach().clone().requires_grad_() for parameter in model.parameters()]
    model = model.to(torch.bfloat16)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(masters, fused=True, **ADAMW)

    def backward() -> torch.Tensor:
        loss = model(batch)
        loss.backward()
        return loss.detach()

    def step() -> None:
        for master, parameter in zip(masters, parameters, strict=True):
            master.grad = parameter.grad.float()
            parameter.grad = None
        nn.utils.clip_grad_norm_(masters, CLIPPING)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_copy_(parameters, masters)
        optimizer.zero_grad()

    return System(backward, step)


def _loop(model: nn.Module, batch: torch.Tensor, optimizer: torch.optim.Optimizer, autocast: bool = False) -> System:
    def backward() -> torch.Tensor:
        with torch.autocast(batch.device.type, torch.bfloat16, enabled=autocast):
            loss = model(batch)
        loss.backward()
        return loss.detach()

    def step() -> None:
        nn.utils.clip_grad_norm_(model.parameters(), CLIPPING)
        optimizer.step()
        optimizer.zero_grad()

    return System(backward, step)


def plain_autocast(name: str, device: torch.device, batch: torch.Tensor) -> System:
    """fp32 parameters under autocast to bf16, fused AdamW."""
    model = model_on(name, device)
    return _loop(model, batch, torch.optim.AdamW(model.parameters(), fused=True, **ADAMW), autocast=True)


def ddp(name: str, device: torch.device, batch: torch.Tensor) -> System:
    """Data parallel under autocast, gradients as views of the buckets, fused AdamW."""
    model = nn.parallel.DistributedDataParallel(model_on(name, device), gradient_as_bucket_view=True)
    return _loop(model, batch, torch.optim.AdamW(model.parameters(), fused=True, **ADAMW), autocast=True)


def fsdp2(name: str, device: torch.device, batch: torch.Tensor, offload: bool = False) -> System:
    """`fully_shard` on every block and on the rest: fp32 shards, bf16 computation. offload: CPUOffloadPolicy."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

    model = model_on(name, device)
    options = {
        "mesh": init_device_mesh(device.type, (torch.distributed.get_world_size(),)),
        "mp_policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32),
        "offload_policy": CPUOffloadPolicy() if offload else OffloadPolicy(),
    }
    for block in model.blocks:
        fully_shard(block, **options)
    fully_shard(model, **options)
    return _loop(model, batch, torch.optim.AdamW(model.parameters(), fused=True, **ADAMW))


def _engine_config(name: str, zero: dict[str, Any]) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": ROWS_OF_BATCH[name],
        "bf16": {"enabled": True},
        "gradient_clipping": CLIPPING,
        "zero_optimization": copy.deepcopy(zero),
        "optimizer": {"type": "AdamW", "params": {**ADAMW, "betas": list(ADAMW["betas"])}},
    }


def deepspeed(name: str, device: torch.device, batch: torch.Tensor, zero: dict[str, Any]) -> System:
    """DeepSpeed with our configuration, if it can be imported."""
    import deepspeed as peer

    config = _engine_config(name, zero)
    engine, *_ = peer.initialize(model=model_on(name, device), model_parameters=None, config=config)
    return System(lambda: _engine_backward(engine, batch), engine.step)


def ours(
    name: str, device: torch.device, batch: torch.Tensor, zero: dict[str, Any], own: dict[str, Any] | None = None
) -> System:
    """Zeropage. own: the section "zeropage" of the configuration."""
    import zeropage

    config = {**_engine_config(name, zero), "zeropage": own or {}}
    engine, *_ = zeropage.initialize(model=model_on(name, device), config=config)
    formula = engine.memory_report().formula
    predicted = formula.parameters + formula.gradients + formula.optimizer
    return System(lambda: _engine_backward(engine, batch), engine.step, predicted_bytes=predicted)


def _engine_backward(engine: Any, batch: torch.Tensor) -> torch.Tensor:
    loss = engine(batch)
    engine.backward(loss)
    return loss.detach()


def contestants(model: str) -> dict[str, Callable[[torch.device, torch.Tensor], System]]:
    """All rows of one model by name, the most important ones first."""
    host = {"offload_optimizer": {"device": "cpu"}}

    def our(zero: dict[str, Any], own: dict[str, Any] | None = None) -> Callable[[torch.device, torch.Tensor], System]:
        return lambda device, batch: ours(model, device, batch, zero, own)

    def other(maker: Callable[..., System], **options: Any) -> Callable[[torch.device, torch.Tensor], System]:
        return lambda device, batch: maker(model, device, batch, **options)

    rows = {
        "plain, bf16 with fp32 masters": other(plain_masters),
        "stage 0": our({"stage": 0}),
        "stage 3": our({"stage": 3}),
        "plain, autocast": other(plain_autocast),
        "FSDP2": other(fsdp2),
        "stage 2, optimizer on the host, updated there": our({"stage": 2, **host}, {"offloaded_update": "host"}),
        "stage 2, optimizer on the host, updated on the device": our(
            {"stage": 2, **host}, {"offloaded_update": "device"}
        ),
        "stage 2": our({"stage": 2}),
        "stage 1": our({"stage": 1}),
        "stage 1, optimizer on the host, updated on the device": our(
            {"stage": 1, **host}, {"offloaded_update": "device"}
        ),
        "stage 2, optimizer on the host, no speculation": our(
            {"stage": 2, **host}, {"offloaded_update": "host", "speculation_bytes": 0}
        ),
        "FSDP2, CPUOffloadPolicy": other(fsdp2, offload=True),
        "stage 3, optimizer and parameters on the host": our({"stage": 3, **host, "offload_param": {"device": "cpu"}}),
    }
    for dtype in ("bf16", "int8"):
        for place, name in (("host", "there"), ("device", "on the device")):
            own = {"optimizer_state_dtype": dtype, "offloaded_update": place}
            rows[f"stage 2, optimizer on the host, updated {name}, moments in {dtype}"] = our({"stage": 2, **host}, own)
        rows[f"stage 2, moments in {dtype}"] = our({"stage": 2}, {"optimizer_state_dtype": dtype})
    rows["DeepSpeed, stage 2"] = other(deepspeed, zero={"stage": 2})
    rows["DeepSpeed, stage 2, optimizer on the host"] = other(deepspeed, zero={"stage": 2, **host})
    return rows
