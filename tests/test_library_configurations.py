"""Configurations as training libraries write them."""

import math

import torch
from torch import nn

import zeropage
from zeropage.testing import run_ranks

# What Accelerate, transformers and TRL make of a configuration with "auto": figures from the model's sizes, and what
# they do not fill in.
WRITTEN = {
    "train_micro_batch_size_per_gpu": 1,
    "train_batch_size": "auto",
    "steps_per_print": math.inf,
    "fp16": {"enabled": False, "loss_scale": 0, "initial_scale_power": 16},
    "bf16": {"enabled": False},
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "betas": "auto", "eps": "auto", "weight_decay": "auto"}},
    "scheduler": {
        "type": "WarmupLR",
        "params": {"warmup_min_lr": 1e-3, "warmup_max_lr": 1e-3, "warmup_num_steps": "auto"},
    },
    "zero_optimization": {"stage": 3, "reduce_bucket_size": 64, "stage3_param_persistence_threshold": "auto"},
    "zero_optimization.reduce_bucket_size": 64 * 64,
    "zero_optimization.stage3_prefetch_bucket_size": 0.9 * 64 * 64,
}


def test_what_libraries_write_is_read_and_reported_once(capfd):
    """Catches a value that a library writes and that ends `initialize`, one that is lost, and a change of values that
    is not reported."""
    torch.manual_seed(0)
    plain = nn.Linear(4, 4)
    weight = plain.weight.detach().clone()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3, weight_decay=0.0)
    plain(torch.ones(1, 4)).sum().backward()
    optimizer.step()

    def run(rank, communicator):
        model = nn.Linear(4, 4)
        with torch.no_grad():
            model.weight.copy_(weight)
        engine, *_ = zeropage.initialize(model=model, config=WRITTEN)
        engine.backward(engine(torch.ones(1, 4)).sum())
        engine.step()
        with zeropage.zero.GatheredParameters(list(model.parameters())):
            return model.weight.detach().clone()

    for trained in run_ranks(2, run):
        torch.testing.assert_close(trained, plain.weight.detach(), rtol=2e-5, atol=2e-6)
    messages = [line for line in capfd.readouterr().err.splitlines() if "dict:1: " in line]
    for part in (
        'optimizer.params.betas: nothing filled in the value "auto"; the default',
        'scheduler.params.warmup_num_steps: nothing filled in the value "auto"; the default 1000 is used',
        'zero_optimization.stage3_param_persistence_threshold: nothing filled in the value "auto"; the default 100000 is used',
        "zero_optimization.reduce_bucket_size: a name with a dot outside its section sets that key instead of 64",
        "3686.4 is rounded down to 3686",
    ):
        assert sum(part in line for line in messages) == 1, (part, messages)
