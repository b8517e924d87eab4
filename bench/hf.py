"""GPT-2 of 10 million parameters through transformers' Trainer on 2 CPU ranks: stage 3 compared with FSDP2 through
Accelerate, and the cost of the alias.

    bench/hf.py            everything, as a line of JSON
    bench/hf.py --rounds 3 fewer rounds

Each round trains both systems one after the other in the same processes, each with a new Trainer; rounds begin
alternately with one and the other. A step is timed from the end of the previous step to its own end. Accelerate chooses
FSDP only on GPUs, so `let_accelerate_shard` enables it on CPUs. The cost of the alias: microseconds of a small engine's
step with and without the attributes that the alias adds to parameters, and seconds of `import deepspeed` beyond `import
zeropage` and its engine.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import Block, emit, is_rank, ratio_figures, run_ranks

from zeropage import alias

TARGETS = {"ratio": 0.7, "step_us": 5.0, "import_s": 0.05}
WARM, ROWS, LENGTH, VOCABULARY = 3, 4, 64, 512
SYSTEMS = ("stage 3", "FSDP2")
DS_CONFIG = {
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}},
    "zero_optimization": {"stage": 3},
}
FSDP = {"version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "transformer_layer_cls_to_wrap": ["GPT2Block"]}
IMPORT = (
    "import zeropage.engine, time; begin = time.perf_counter(); import deepspeed; print(time.perf_counter() - begin)"
)


def let_accelerate_shard() -> None:
    """Does what Accelerate does with a plugin for FSDP on GPUs but not on CPUs."""
    from accelerate.state import AcceleratorState, DistributedType

    plain = AcceleratorState.__init__

    def sharding(self, *args, fsdp_plugin=None, **kwargs) -> None:
        plain(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin

    AcceleratorState.__init__ = sharding


def train(system: str, steps: int, folder: str) -> tuple[Block, float]:
    """(cost of a step, last loss)"""
    import torch
    from accelerate.state import AcceleratorState, GradientState
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    for name in [name for name in os.environ if name.startswith(("ACCELERATE_USE_", "FSDP_"))]:
        del os.environ[name]  # set by the other system's arguments
    times: list[tuple[float, float, int]] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *args, **kwargs) -> None:
            times.append(
                (time.perf_counter(), time.process_time(), resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw)
            )

    own = (
        {"deepspeed": DS_CONFIG} if system == "stage 3" else {"fsdp": True, "fsdp_config": dict(FSDP), "use_cpu": True}
    )
    arguments = TrainingArguments(
        folder,
        per_device_train_batch_size=ROWS,
        max_steps=WARM + steps,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        logging_steps=WARM + steps,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **own,
    )
    torch.manual_seed(0)
    tokens = torch.randint(VOCABULARY, (256, LENGTH))
    data = [{"input_ids": row, "labels": row} for row in tokens]
    shape = GPT2Config(
        n_layer=8, n_embd=320, n_head=5, n_positions=LENGTH, vocab_size=VOCABULARY, tie_word_embeddings=False
    )
    trainer = Trainer(model=GPT2LMHeadModel(shape), args=arguments, train_dataset=data, callbacks=[Clock()])
    loss = trainer.train().training_loss
    return Block(*((last - first) / steps for first, last in zip(times[WARM - 1], times[-1], strict=True))), loss


def measure(rounds: int, steps: int, result: str) -> None:
    """The program of a rank; rank 0 writes the figures."""
    import torch

    torch.set_num_threads(1)
    let_accelerate_shard()
    blocks: dict[str, list[Block]] = {name: [] for name in SYSTEMS}
    losses: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(rounds):
            for name in SYSTEMS if turn % 2 == 0 else SYSTEMS[::-1]:
                block, losses[name] = train(name, steps, folder)
                blocks[name].append(block)
    ours, peer = (losses[name] for name in SYSTEMS)
    if abs(ours - peer) > 1e-4 * peer:
        raise AssertionError(f"mean losses: {losses}")
    least = {f"{name}_ms": round(min(block.wall_s for block in blocks[name]) * 1e3, 1) for name in SYSTEMS}
    if os.environ["RANK"] == "0":
        Path(result).write_text(json.dumps({**ratio_figures(blocks["stage 3"], blocks["FSDP2"]), **least}))


def alias_step_us(rounds: int) -> dict[str, float]:
    """The additional time of a step with the properties of the alias: 40 parameters, one rank."""
    import torch

    import zeropage
    from zeropage.compat import parameter_view

    torch.set_num_threads(1)
    model = torch.nn.Sequential(*[torch.nn.Linear(8, 8) for _ in range(20)])
    config = {"train_batch_size": 1, "optimizer": {"type": "AdamW"}, "zero_optimization": {"stage": 3}}
    engine, *_ = zeropage.initialize(model=model, config=config)
    batch = torch.randn(1, 8)

    def block(steps: int = 50) -> float:
        begin = time.perf_counter()
        for _ in range(steps):
            engine.backward(engine(batch).sum())
            engine.step()
        return (time.perf_counter() - begin) / steps * 1e6

    block()
    before = set(vars(torch.nn.Parameter))
    with_names, without = [], []
    for _ in range(rounds):
        parameter_view.install()
        with_names.append(block())
        for name in set(vars(torch.nn.Parameter)) - before:
            delattr(torch.nn.Parameter, name)
        without.append(block())
    differences = [a - b for a, b in zip(with_names, without, strict=True)]
    return {
        "step_us": round(statistics.median(differences), 1),
        "step_us_of_minima": round(min(with_names) - min(without), 1),
    }


def alias_import_s(environment: dict[str, str], rounds: int) -> dict[str, float]:
    command = [sys.executable, "-c", IMPORT]
    outputs = [
        subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
        for _ in range(rounds)
    ]
    seconds = [float(output) for output in outputs]
    return {"import_s": round(statistics.median(seconds), 4), "import_s_least": round(min(seconds), 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="of both systems (7)")
    parser.add_argument("--steps", type=int, default=10, help="timed steps of a round (10)")
    parser.add_argument("--result", help=argparse.SUPPRESS)  # where rank 0 writes
    options = parser.parse_args()
    if is_rank():
        measure(options.rounds, options.steps, options.result)
        return
    with tempfile.TemporaryDirectory() as folder:
        alias.write_metadata(Path(folder))
        path = os.pathsep.join([folder, str(alias.FOLDER), os.environ.get("PYTHONPATH", "")])
        os.environ |= {
            "PYTHONPATH": path,
            "HF_HUB_OFFLINE": "1",
            "ZEROPAGE_DEVICE": "cpu",
            "TOKENIZERS_PARALLELISM": "false",
        }
        result = str(Path(folder) / "figures.json")
        run_ranks(2, ["--rounds", str(options.rounds), "--steps", str(options.steps), "--result", result])
        figures = json.loads(Path(result).read_text())
        figures |= alias_step_us(20 * options.rounds) | alias_import_s(dict(os.environ), options.rounds)
    emit("hf", model="GPT-2 10M", ranks=2, ours=SYSTEMS[0], peer=SYSTEMS[1], **figures, targets=TARGETS)


if __name__ == "__main__":
    main()
