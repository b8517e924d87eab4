"""Makes tests/deepspeed_checkpoints.tar.xz: checkpoints by a real DeepSpeed on two ranks, and the losses of the steps
after them.

The tests need the archive alone. To make it again, in an environment that has torch and deepspeed (DS_BUILD_OPS=0 pip
install deepspeed):

    python tests/make_deepspeed_checkpoints.py
"""

import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

ARCHIVE = Path(__file__).with_name("deepspeed_checkpoints.tar.xz")
WORLD = 2
SAVED_AFTER, STEPS = 4, 8
ACCUMULATION = 2
_FP16 = {"fp16": {"enabled": True, "initial_scale_power": 6, "loss_scale_window": 3}}
_BF16 = {"bf16": {"enabled": True}}
CASES: dict[str, dict[str, Any]] = {
    "fp32_stage1": {"stage": 1},
    "fp32_stage1_elastic": {"stage": 1, "zero": {"elastic_checkpoint": True}},
    "fp32_stage2": {"stage": 2, "groups": 2, "zero": {"round_robin_gradients": True}},
    "fp32_stage3": {"stage": 3, "groups": 2, "zero": {"sub_group_size": 40}},
    "bf16_stage1": {"stage": 1, "sections": _BF16},
    "bf16_stage1_fp32_sums": {"stage": 1, "sections": {**_BF16, "data_types": {"grad_accum_dtype": "fp32"}}},
    "bf16_stage2": {"stage": 2, "groups": 2, "sections": _BF16},
    "bf16_stage3": {"stage": 3, "sections": _BF16},
    "fp16_stage2": {"stage": 2, "sections": _FP16},
}


class Model(nn.Module):
    """A tied embedding, a frozen layer, a buffer, and sizes that no number of ranks divides."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 5)
        self.frozen = nn.Linear(5, 5, bias=False)
        self.frozen.weight.requires_grad_(False)
        self.expand = nn.Linear(5, 7)
        self.contract = nn.Linear(7, 5)
        self.head = nn.Linear(5, 11, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("scale", torch.tensor([1.5]))

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        h = self.embedding(tokens)
        h = h + self.frozen(h) * self.scale.to(h.dtype)
        h = h + self.contract(torch.tanh(self.expand(h)))
        return nn.functional.cross_entropy(self.head(h).float().flatten(0, 1), targets.flatten())


def groups_of(model: nn.Module, groups: int) -> Any:
    """What is trained; in two groups: weights, and the rest without decay."""
    trained = [p for p in model.parameters() if p.requires_grad]
    if groups == 1:
        return trained
    return [
        {"params": [p for p in trained if p.dim() > 1]},
        {"params": [p for p in trained if p.dim() == 1], "weight_decay": 0.0},
    ]


def config_of(case: dict[str, Any]) -> dict[str, Any]:
    """Works in both."""
    return {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": ACCUMULATION,
        "gradient_clipping": 1.0,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "weight_decay": 0.1, "torch_adam": True}},
        "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 7, "warmup_max_lr": 2e-2}},
        "zero_optimization": {"stage": case["stage"], "stage3_param_persistence_threshold": 10, **case.get("zero", {})},
        **case.get("sections", {}),
    }


def batch(step: int, micro: int, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step * ACCUMULATION + micro)
    tokens = torch.randint(0, 11, (2 * WORLD, 3), generator=generator)
    mine = tokens.chunk(WORLD)[rank]
    return mine, (mine * 7 + 1) % 11


def train(engine: Any, rank: int, steps: range) -> list[float]:
    losses = []
    for step in steps:
        for micro in range(ACCUMULATION):
            loss = engine(*batch(step, micro, rank))
            engine.backward(loss)
            engine.step()
            losses.append(loss.item())
    return losses


def run_rank(name: str, folder: str) -> None:
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    case, rank = CASES[name], int(os.environ["RANK"])
    type(get_accelerator()).is_fp16_supported = lambda self: True  # torch's operators on CPUs have it by now
    torch.manual_seed(0)
    model = Model()
    groups = groups_of(model, case.get("groups", 1))
    engine, *_ = deepspeed.initialize(model=model, config=config_of(case), model_parameters=groups)
    train(engine, rank, range(SAVED_AFTER))
    engine.save_checkpoint(folder, client_state={"epoch": 3, "best": (1.5, "two")})
    losses = train(engine, rank, range(SAVED_AFTER, STEPS))
    Path(folder, f"losses{rank}.json").write_text(json.dumps(losses))
    deepspeed.comm.destroy_process_group()  # its threads would end the process with an error


def main() -> None:
    if len(sys.argv) > 1:
        return run_rank(sys.argv[1], sys.argv[2])
    environment = {
        **os.environ,
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29411",
    }
    with tempfile.TemporaryDirectory() as root:
        for name in CASES:
            command = [sys.executable, __file__, name, f"{root}/{name}"]
            places = [{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD)} for rank in range(WORLD)]
            ranks = [subprocess.Popen(command, env=environment | place) for place in places]
            if any([rank.wait(timeout=300) for rank in ranks]):
                raise SystemExit(f"DeepSpeed failed in the case {name}")
            for script in Path(root, name).glob("*.py"):
                script.unlink()  # DeepSpeed's converters
        with tarfile.open(ARCHIVE, "w:xz") as archive:
            for name in CASES:
                archive.add(
                    f"{root}/{name}",
                    name,
                    filter=lambda info: info.replace(mtime=0, uid=0, gid=0, uname="", gname="", deep=False),
                )


if __name__ == "__main__":
    main()
