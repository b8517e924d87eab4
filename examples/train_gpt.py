"""Trains a small language model with the engine. Run it on two ranks with

zeropage --num_gpus=2 examples/train_gpt.py          (or: torchrun --nproc_per_node=2 examples/train_gpt.py)
"""

import argparse
import itertools
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from gpt import Gpt, GptConfig
from text_data import LibraryText

import zeropage as deepspeed
from zeropage.report import MEMORY_KINDS, progress
from zeropage.utils import RepeatingLoader


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--config", default=Path(__file__).with_name("ds_config.json"), help="ds_config.json by default"
    )
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps")
    parser.add_argument("--seed", type=int, default=1, help="seed of the model's initial values")
    parser.add_argument("--stage", type=int, choices=range(4), help="overrides the configuration's stage")
    parser.add_argument("--result", type=Path, help="rank 0 writes losses and bytes here, as JSON")
    parser.add_argument("--local_rank", type=int, default=-1, help="set by the launcher")
    return parser.parse_args()


def load_config(path: Path, stage: int | None) -> str | dict:
    if stage is None:
        return str(path)
    config = json.loads(Path(path).read_text())
    config["zero_optimization"]["stage"] = stage
    return config


def recording(batches: Iterable[torch.Tensor], model_engine, losses: list[float]) -> Iterator[torch.Tensor]:
    """Yields the batches and records the loss of each optimizer step."""
    for batch in batches:
        yield batch
        if model_engine.global_steps > len(losses):
            losses.append(model_engine.mean_loss())


def main() -> None:
    arguments = parse_arguments()
    shape = GptConfig(seed=arguments.seed)
    model = Gpt(shape)

    model_engine, optimizer, _, _ = deepspeed.initialize(
        model=model, config=load_config(arguments.config, arguments.stage)
    )

    losses: list[float] = []
    micro_batches = arguments.steps * model_engine.gradient_accumulation_steps()
    loader = RepeatingLoader(model_engine.deepspeed_io(LibraryText(shape.context)))
    batches = recording(itertools.islice(loader, micro_batches), model_engine, losses)
    dataloader = progress(
        batches, model_engine, total_steps=arguments.steps, unit="tokens", units_per_sample=shape.context
    )

    for batch in dataloader:
        loss = model_engine(batch)
        model_engine.backward(loss)
        model_engine.step()

    report_end(model_engine, losses, arguments.result)


def report_end(model_engine, losses: list[float], result: Path | None) -> None:
    memory = model_engine.memory_report()
    if model_engine.global_rank != 0:
        return
    summary = f"stage {memory.stage}: loss {losses[0]:.4f} at step 1, {losses[-1]:.4f} at step {len(losses)}"
    print(
        f"\n{summary}\n\n{memory.table()}", file=sys.stderr, flush=True
    )  # to the same stream as the progress line, to keep the order
    if result is not None:
        formula = {kind: getattr(memory.formula, kind) for kind in MEMORY_KINDS[:3]}
        content = {"stage": memory.stage, "losses": losses, "bytes": memory.ranks, "formula": formula}
        result.write_text(json.dumps(content))


if __name__ == "__main__":
    main()
