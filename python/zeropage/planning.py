"""`zeropage.plan`: memory and time of a model at every stage, and a recommendation."""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from . import _C
from .errors import ConfigError
from .muon import takes_muon


@dataclass(frozen=True)
class Plan:
    """rows: one dict per stage and offload, with bytes by kind, the time if the device is known, and its "config".

    recommendation: {"row": index or None, "checkpointing": bool, "reason": text}.
    """

    model: dict[str, Any]
    rows: list[dict[str, Any]]
    recommendation: dict[str, Any]
    text: str

    def __str__(self) -> str:
        return self.text

    @property
    def config(self) -> dict[str, Any] | None:
        """The recommended configuration, for `initialize(config=...)`; None when nothing fits."""
        row = self.recommendation["row"]
        return None if row is None else self.rows[row]["config"]


def plan(
    model: str | int | os.PathLike | torch.nn.Module | Iterable[torch.Tensor],
    *,
    num_gpus: int = 1,
    num_nodes: int = 1,
    device: str | os.PathLike | None = None,
    optimizer: str = "AdamW",
    optimizer_bytes: int = 8,
    precision: str = "bf16",
    micro_batch: int = 1,
    accumulation_steps: int = 1,
    sequence: int = 2048,
    quantized_weights: bool = False,
    quantized_gradients: bool = False,
    hpz_partition_size: int = 1,
    shard_ranks: int = 0,
    **figures: str | float,
) -> Plan:
    """Makes a plan without running anything.

    model: a number of parameters ("7B"), the path of safetensors or a config.json, a module, or parameters (also meta
    tensors). num_gpus: devices of a host. device: "H100", "H200", "A100", ..., or the path of a file of `zeropage plan
    --measure --save_machine`; None: bytes only. optimizer: AdamW, Adam, Lamb, Lion, Adagrad, SGD, Muon, or "whole" for
    an object that needs whole parameters and keeps `optimizer_bytes` per trained element. quantized_weights,
    quantized_gradients, hpz_partition_size, shard_ranks: as in a configuration, at the stages that have them. figures:
    replace those of the device, like the options of `zeropage plan`: device_memory="40GB", network_rate="25GB/s".
    Raises ConfigError, IoError.
    """
    options = _C.PlanOptions()
    options.num_gpus, options.num_nodes = num_gpus, num_nodes
    options.device = os.fspath(device or "")
    options.figures = {name: str(value) for name, value in figures.items()}
    options.optimizer, options.optimizer_bytes, options.precision = optimizer, optimizer_bytes, precision
    options.micro_batch, options.accumulation_steps, options.sequence = micro_batch, accumulation_steps, sequence
    options.quantized_weights, options.quantized_gradients = quantized_weights, quantized_gradients
    options.hpz_partition_size, options.shard_ranks = hpz_partition_size, shard_ranks
    document, text = _C.make_plan(_model_of(model), options)
    fields = json.loads(document)
    return Plan(fields["model"], fields["rows"], fields["recommendation"], text)


def _model_of(model: Any) -> _C.PlanModel:
    if isinstance(model, (str, int, os.PathLike)):
        return _C.PlanModel.read(os.fspath(model) if isinstance(model, os.PathLike) else str(model))
    name = type(model).__name__ if isinstance(model, torch.nn.Module) else "parameters"
    named = model.named_parameters() if isinstance(model, torch.nn.Module) else (("", each) for each in model)
    names, parameters = map(list, zip(*named, strict=True)) if (named := list(named)) else ([], [])
    wrong = next((p for p in parameters if not isinstance(p, torch.Tensor)), None)
    if wrong is not None:
        raise ConfigError(
            f"plan takes a number, a path, a module or its parameters; got {type(wrong).__name__} among the parameters"
        )
    return _C.PlanModel.of_parameters(
        name,
        [p.numel() for p in parameters],
        [p.requires_grad for p in parameters],
        [takes_muon(each, p) for each, p in zip(names, parameters, strict=True)],
    )
