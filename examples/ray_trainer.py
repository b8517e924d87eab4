"""Trains the small language model with Ray Train's TorchTrainer: Ray starts the ranks, the engine trains. Run it with

python examples/ray_trainer.py --workers 2          (after: pip install "ray[train]")
"""

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

CONFIG = Path(__file__).resolve().with_name("ds_config.json")


def train_rank(options: dict[str, Any]) -> None:
    """The program of every worker of Ray. Ray has set RANK, WORLD_SIZE and the address of the rendezvous, which
    `initialize` reads."""
    import ray.train
    from gpt import Gpt, GptConfig
    from text_data import LibraryText

    import zeropage as deepspeed
    from zeropage.utils import RepeatingLoader

    shape = GptConfig()
    engine, *_ = deepspeed.initialize(model=Gpt(shape), config=options["config"])
    loader = RepeatingLoader(engine.deepspeed_io(LibraryText(shape.context)))
    losses: list[float] = []
    for batch in itertools.islice(loader, options["steps"] * engine.gradient_accumulation_steps()):
        loss = engine(batch)
        engine.backward(loss)
        engine.step()
        if engine.global_steps > len(losses):
            losses.append(engine.mean_loss())
            ray.train.report({"loss": losses[-1]})
    if engine.global_rank == 0:
        Path(options["result"]).write_text(json.dumps({"world_size": engine.world_size, "losses": losses}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2, help="ranks")
    parser.add_argument("--gpu", action="store_true", help="a GPU for each rank; without it a CPU")
    parser.add_argument("--steps", type=int, default=30, help="optimizer steps")
    parser.add_argument("--output", type=Path, default=Path("runs/ray"), help="folder of Ray's files and of the losses")
    arguments = parser.parse_args()

    output = arguments.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    ray.init(include_dashboard=False)  # workers can import the modules of this folder, because Ray uses it as theirs
    trainer = TorchTrainer(
        train_rank,
        train_loop_config={"config": str(CONFIG), "steps": arguments.steps, "result": str(output / "losses.json")},
        torch_config=TorchConfig(backend="nccl" if arguments.gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=arguments.workers, use_gpu=arguments.gpu),
        run_config=RunConfig(storage_path=str(output), name="train"),
    )
    trainer.fit()
    losses = json.loads((output / "losses.json").read_text())["losses"]
    print(f"loss {losses[0]:.4f} at step 1, {losses[-1]:.4f} at step {len(losses)}")


if __name__ == "__main__":
    main()
