"""What a rank does in test_behaviour.py."""

import os
import threading
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from tiny import PLAIN, VOCABULARY, Tokens, arguments, ds_config, history, llama, llama_config, weights_of
from transformers import LlamaForCausalLM, LlamaForSequenceClassification, Trainer, TrainingArguments

# Every parameter has its own page, and only few are resident.
TIGHT = {"stage3_param_persistence_threshold": 0, "stage3_max_live_parameters": 4096}


def _trainer(
    config: dict[str, Any] | None, folder: Path, model: torch.nn.Module | None = None, **changes: Any
) -> Trainer:
    options = {"eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 2, **changes}
    args = arguments(config, folder, **options)
    return Trainer(model=model or llama(), args=args, train_dataset=Tokens(64), eval_dataset=Tokens(8, seed=2))


def load_models(folder: str) -> dict[str, Any]:
    """from_pretrained without and under zero.Init: a whole model, one with a new head, one with an embedding of another
    size."""
    place = Path(folder) / "saved"
    if os.environ["RANK"] == "0":
        llama().save_pretrained(place)
    results: dict[str, Any] = {}
    evaluation = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3, **TIGHT}}
    for name in (PLAIN, "3"):
        keep = _args(None if name == PLAIN else ds_config(3, **TIGHT), Path(folder) / name)
        dist.barrier()
        torch.manual_seed(7 + int(os.environ["RANK"]))
        whole = LlamaForCausalLM.from_pretrained(place)
        headed = LlamaForSequenceClassification.from_pretrained(place, num_labels=3)
        resized = LlamaForCausalLM.from_pretrained(place)
        resized.resize_token_embeddings(VOCABULARY + 8, mean_resizing=False)
        fresh = LlamaForCausalLM._from_config(llama_config())
        absent = sum(_is_absent(parameter) for parameter in whole.parameters())
        models = (whole, headed, resized, fresh)
        if name != PLAIN:  # small parameters have rank 0's values from then on
            engines = [deepspeed.initialize(model=model, config=evaluation)[0] for model in models]
            assert all(engine.optimizer.forward_hooks == [] for engine in engines)
        results[name] = {
            "absent": absent,
            "whole": weights_of(whole),
            "headed": weights_of(headed.model),
            "head": weights_of(headed.score)["weight"],
            "resized": weights_of(resized),
            "fresh": weights_of(fresh),
        }
        del keep
    return results


def _args(config: dict[str, Any] | None, folder: Path) -> TrainingArguments:
    """The caller must keep them: from_pretrained reads their configuration while they exist."""
    return arguments(config, folder)


def _is_absent(parameter: torch.Tensor) -> bool:
    return getattr(parameter, "ds_status", None) is deepspeed.zero.ZeroParamStatus.NOT_AVAILABLE


class PeakMemory:
    """While inside, a thread follows what this process has in memory: pages that two ranks share count half for each,
    and those of files, which the kernel can drop, not at all."""

    def __enter__(self) -> "PeakMemory":
        self._begin = self._peak = self._now()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow)
        self._thread.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._ended.set()
        self._thread.join()
        self.bytes = max(self._peak, self._now()) - self._begin

    def _follow(self) -> None:
        while not self._ended.wait(0.001):
            self._peak = max(self._peak, self._now())

    @staticmethod
    def _now() -> int:
        with open("/proc/self/smaps_rollup") as sums:
            return sum(int(line.split()[1]) for line in sums if line.startswith(("Pss_Anon:", "Pss_Shmem:"))) * 1024


LARGE = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8}


def load_large(folder: str) -> dict[str, int]:
    """Bytes that from_pretrained under zero.Init takes at its peak, of the model, and of its largest layer."""
    place = Path(folder) / "saved"
    if os.environ["RANK"] == "0":
        llama(**LARGE).save_pretrained(place)
    keep = _args(ds_config(3, stage3_param_persistence_threshold=0, stage3_max_live_parameters=2**20), Path(folder))
    deepspeed.init_distributed()
    dist.barrier()
    with PeakMemory() as peak:
        model = LlamaForCausalLM.from_pretrained(place)
    del keep
    layer = sum(parameter.numel() for parameter in model.model.layers[0].parameters())
    return {
        "peak": peak.bytes,
        "model": 4 * sum(parameter.numel() for parameter in model.parameters()),
        "layer": 4 * layer,
    }


def again_and_again(folder: str) -> dict[str, Any]:
    """A Trainer that evaluates, trains, predicts and trains again, and a second one on the same model. Under plain DDP
    transformers does not sum gradients in a training after an evaluation, and at stage 2 it cannot evaluate before a
    training. So another Trainer evaluates in these cases."""
    results = {}
    for name, config in {PLAIN: None, "2": ds_config(2), "3": ds_config(3, **TIGHT)}.items():
        place = Path(folder) / name
        first = _trainer(config if name == "3" else None, place)
        seen = [first.evaluate()["eval_loss"]]
        if name != "3":
            first = _trainer(config, place)
        first.train()
        seen.append(first.predict(Tokens(8, seed=4)).metrics["test_loss"])
        again = (
            first if config is not None else _trainer(None, place / "again", first.model)
        )  # whose optimizer is a new one, too
        again.train()
        seen.append(again.evaluate()["eval_loss"])
        second = _trainer(config, place / "second", first.model)
        second.train()
        seen.append(second.evaluate()["eval_loss"])
        results[name] = {"seen": seen, **history(second, "loss"), "weights": weights_of(second.model)}
    return results


def checkpoints(folder: str) -> dict[str, Any]:
    """A run that saves, keeps the best, and is resumed; its folders; and a run that saves only the model."""
    results = {}
    for name, config in {PLAIN: None, "2": ds_config(2), "3": ds_config(3, **TIGHT)}.items():
        place = Path(folder) / name
        saving = {"save_strategy": "steps", "save_steps": 2}
        whole = _trainer(
            config, place, max_steps=6, load_best_model_at_end=True, metric_for_best_model="eval_loss", **saving
        )
        whole.train()
        best = {
            "best": whole.state.best_metric,
            "best weights": weights_of(whole.model),
            "best eval": whole.evaluate()["eval_loss"],
        }
        resumed = _trainer(config, place, max_steps=6)
        resumed.train(resume_from_checkpoint=str(place / "checkpoint-2"))
        alone = _trainer(config, place / "alone", max_steps=2, save_only_model=True, **saving)
        alone.train()
        dist.barrier()
        loaded = LlamaForCausalLM.from_pretrained(place / "alone" / "checkpoint-2") if name == PLAIN else None
        results[name] = {**best, **history(resumed, "loss"), "resumed": weights_of(resumed.model)}
        results[name]["alone"] = weights_of(loaded) if loaded is not None else _read(place / "alone" / "checkpoint-2")
        state = alone.accelerator.get_state_dict(alone.model_wrapped)
        if os.environ["RANK"] == "0":
            alone.accelerator.unwrap_model(alone.model_wrapped).save_pretrained(
                place / "hub", state_dict=state, max_shard_size="20KB"
            )
        dist.barrier()
        results[name]["hub"] = _read(place / "hub")
        assert (
            len(list((place / "hub").glob("model-*-of-*.safetensors"))) > 1
            and (place / "hub" / "model.safetensors.index.json").is_file()
        )
    return results


def _read(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {name: value.float() for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


def generate(folder: str) -> dict[str, Any]:
    """Generation whose ranks stop at different lengths, with a model that is sharded."""
    results = {}
    rank = int(os.environ["RANK"])
    for name, config in {PLAIN: None, "3": ds_config(3, **TIGHT)}.items():
        trainer = _trainer(config, Path(folder) / name)
        trainer.train()
        model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
        prompt = torch.tensor([[5 + rank, 9, 14]])
        made = [
            model.generate(prompt, max_new_tokens=4 + 6 * rank, do_sample=False, synced_gpus=synced)[0].tolist()
            for synced in (True, False)
        ]
        results[name] = {"made": made, "lengths": len(made[0])}
    return results


def configured_schedule(folder: str) -> list[float]:
    """The rates of a schedule whose figures are all "auto"."""
    config = ds_config(2)
    params = {"warmup_min_lr": "auto", "warmup_max_lr": "auto", "warmup_num_steps": "auto", "total_num_steps": "auto"}
    config["scheduler"] = {"type": "WarmupDecayLR", "params": {**params, "warmup_type": "linear"}}
    trainer = _trainer(config, Path(folder))
    trainer.train()
    return history(trainer, "learning_rate")["learning_rate"]
