"""The layout of a checkpoint of DeepSpeed's ZeRO stages 1 to 3.

1. `<tag>/mp_rank_00_model_states.pt` (stages 1, 2) contains the module, the counters and the client state. At stage 3
   there is one per rank, `zero_pp_rank_<r>_mp_rank_00_model_states.pt`, with empty parameters and this rank's parts of
   frozen ones.
2. `<tag>/[bf16_]zero_pp_rank_<r>_mp_rank_00_optim_states.pt` contains rank r's part of fp32 masters and moments, flat.
3. Stages 1 and 2: the parameters of a group follow each other in the order of `param_shapes`, each with its alignment
   padding, and the ranks' parts follow each other.
4. Stage 3: a rank's flat groups follow each other. They contain ceil(numel / ranks) elements of each parameter in turn.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError
from .pickle_process import FOREIGN, PickleProcess, StoredTensor

_OPTIMIZER_FILE = re.compile(r"(?:bf16_|fp16_)?zero_pp_rank_(\d+)_mp_rank_00_optim_states\.pt")
_WHOLE_MODEL = "mp_rank_00_model_states.pt"
_OWN_KEYS = frozenset(
    "module buffer_names optimizer param_shapes frozen_param_shapes shared_params frozen_param_fragments lr_scheduler data_sampler "
    "random_ltd sparse_tensor_module_names skipped_steps global_steps global_samples dp_world_size mp_world_size "
    "checkpoint_parallel_dimensions ds_config ds_version".split()
)
Pieces = list[tuple[StoredTensor, int, int]]  # elements [begin, end) of each, one after the other


@dataclass
class Parameter:
    """A trained parameter: the places of its fp32 values and its optimizer state, and the number of its updates."""

    shape: torch.Size
    master: Pieces
    states: dict[str, Pieces] = field(default_factory=dict)
    updates: int = 0


def joined(pieces: Pieces) -> torch.Tensor:
    """The values, flat. Raises CheckpointError."""
    parts = [tensor.read(begin, end) for tensor, begin, end in pieces]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class DeepSpeedStep:
    """A checkpoint of DeepSpeed. The constructor reads everything except tensor data. Raises CheckpointError."""

    def __init__(self, folder: Path, reader: PickleProcess):
        self.folder = folder
        optimizer_files = self._optimizer_files()
        self.world_size = len(optimizer_files)
        first = folder / _WHOLE_MODEL
        rank_models = [folder / f"zero_pp_rank_{rank}_{_WHOLE_MODEL}" for rank in range(self.world_size)]
        models = [reader.open(path) for path in ([first] if first.exists() else rank_models)]
        self.model = models[0]
        self._check_parallelism()
        optimizers = [_member(reader.open(path), "optimizer_state_dict", path, dict) for path in optimizer_files]
        self.optimizer = optimizers[0]
        self.stage = 3 if "fp32_flat_groups" in self.optimizer else _stage_number(self.optimizer.get("zero_stage"))
        shapes = _member(self.model, "param_shapes", first, list)
        self.aliases = {name: target for model in models for name, target in (model.get("shared_params") or {}).items()}
        self.parameters = dict(
            self._sharded(optimizers, shapes) if self.stage == 3 else self._partitioned(optimizers, shapes)
        )
        self.frozen = self._frozen(models)

    def _optimizer_files(self) -> list[Path]:
        found = {
            int(match[1]): path for path in self.folder.iterdir() if (match := _OPTIMIZER_FILE.fullmatch(path.name))
        }
        if not found:
            raise CheckpointError(
                f"{self.folder}: expected DeepSpeed's zero_pp_rank_*_mp_rank_00_optim_states.pt, found none; only checkpoints of ZeRO stages 1 to 3 can be imported"
            )
        if sorted(found) != list(range(len(found))):
            raise CheckpointError(
                f"{self.folder}: there are optimizer states of the ranks {sorted(found)}; some are missing"
            )
        return [found[rank] for rank in range(len(found))]

    def _check_parallelism(self) -> None:
        world = self.model.get("dp_world_size", self.world_size)
        if world != self.world_size:
            raise CheckpointError(f"{self.folder}: saved by {world} ranks, with optimizer states of {self.world_size}")
        other = {
            "mp_world_size": self.model.get("mp_world_size", 1),
            **(self.model.get("checkpoint_parallel_dimensions") or {}),
        }
        if any(degree not in (1, None) for degree in other.values()):
            raise CheckpointError(f"{self.folder}: saved with {other}; only data parallel checkpoints can be imported")

    @property
    def module(self) -> dict[str, StoredTensor]:
        """DeepSpeed's state dict of the module; at stage 3 with empty parameters."""
        return {name: value for name, value in self.model["module"].items() if isinstance(value, StoredTensor)}

    def client_state(self) -> dict[str, Any]:
        return {key: value for key, value in self.model.items() if key not in _OWN_KEYS}

    def _partitioned(self, optimizers: list[Any], shapes: list[Any]) -> Iterator[tuple[str, Parameter]]:
        """Step 3."""
        for group, names in enumerate(shapes):
            masters = [optimizer["single_partition_of_fp32_groups"][group] for optimizer in optimizers]
            states = [_group_state(optimizer["base_optimizer_state"], group) for optimizer in optimizers]
            paddings = (self.optimizer.get("param_alignment_paddings") or {group: [0] * len(names)})[group]
            extent = max(master.numel() for master in masters)
            begin = 0
            for (name, shape), padding in zip(names.items(), paddings, strict=True):
                numel = torch.Size(shape).numel()

                def cut(tensors: list[StoredTensor], name=name, begin=begin, numel=numel, extent=extent) -> Pieces:
                    ranks = range(begin // extent, -(-(begin + numel) // extent)) if numel else range(0)
                    return [
                        _piece(
                            tensors,
                            rank,
                            max(begin - rank * extent, 0),
                            min(begin + numel - rank * extent, extent),
                            name,
                        )
                        for rank in ranks
                    ]

                yield name, self._parameter(shape, masters, states, cut)
                begin += numel + padding

    def _sharded(self, optimizers: list[Any], shapes: list[Any]) -> Iterator[tuple[str, Parameter]]:
        """Step 4."""
        flat_groups = [optimizer["fp32_flat_groups"] for optimizer in optimizers]
        group, begin = 0, 0
        for name, shape in ((name, shape) for names in shapes for name, shape in names.items()):
            numel = torch.Size(shape).numel()
            share = -(-numel // self.world_size)
            while group + 1 < len(flat_groups[0]) and begin >= flat_groups[0][group].numel():
                group, begin = group + 1, 0
            masters = [flats[group] for flats in flat_groups]
            states = [_group_state(optimizer["optimizer_state_dict"], group) for optimizer in optimizers]

            def cut(tensors: list[StoredTensor], name=name, begin=begin, numel=numel, share=share) -> Pieces:
                shares = ((rank, max(0, min(share, numel - rank * share))) for rank in range(self.world_size))
                return [_piece(tensors, rank, begin, begin + size, name) for rank, size in shares if size > 0]

            yield name, self._parameter(shape, masters, states, cut)
            begin += share

    def _parameter(self, shape: Any, masters: list[StoredTensor], states: list[dict], cut: Any) -> Parameter:
        """`cut`: returns this parameter's pieces of the ranks' tensors."""
        parameter = Parameter(torch.Size(shape), cut(masters))
        # A tensor with one element is a number, such as torch's step, unless the parameter has one element.
        per_element = [
            key for key, value in states[0].items() if isinstance(value, StoredTensor) and len(value.shape) == 1
        ]
        for key in per_element:
            parameter.states[key] = cut([state[key] for state in states])
        parameter.updates = self._updates(states[0])
        return parameter

    def _updates(self, state: dict[str, Any]) -> int:
        step = state.get("step", self.optimizer.get("base_optimizer_state_step"))
        if step is None:
            step = next((group["step"] for group in self.base_groups() if "step" in group), None)
        if isinstance(step, StoredTensor):
            step = step.read().item()
        return int(step if step is not None else self.model["global_steps"] - self.model["skipped_steps"])

    def base_groups(self) -> list[dict[str, Any]]:
        """The optimizer's parameter groups; empty if DeepSpeed has not saved them (elastic checkpoints)."""
        base = self.optimizer["optimizer_state_dict" if self.stage == 3 else "base_optimizer_state"]
        return base["param_groups"] if isinstance(base, dict) else [{} for _ in self.model["param_shapes"]]

    def _frozen(self, models: list[Any]) -> dict[str, tuple[torch.Size, Pieces]]:
        """Frozen parameters: shape and place."""
        buffers = set(self.model.get("buffer_names") or ())
        if self.stage == 3:
            shapes = {name: torch.Size(shape) for name, shape in (self.model.get("frozen_param_shapes") or {}).items()}
            parts = {name: [model["frozen_param_fragments"][name] for model in models] for name in shapes}
            return {name: (shape, _first_elements(parts[name], shape.numel())) for name, shape in shapes.items()}
        others = {
            name: value
            for name, value in self.module.items()
            if name not in buffers | self.parameters.keys() | self.aliases.keys()
        }
        return {name: (value.shape, [(value, 0, value.numel())]) for name, value in others.items()}


def _member(value: Any, key: str, where: Any, kind: type) -> Any:
    if isinstance(value, dict) and isinstance(value.get(key), kind):
        return value[key]
    raise CheckpointError(f"{where}: expected a {kind.__name__} under '{key}', as in checkpoints of ZeRO stages 1 to 3")


def _stage_number(stage: Any) -> int:
    """The number of DeepSpeed's ZeroStageEnum, which is read as its constructor's arguments. The bf16 optimizer, of
    stage 1, does not have one."""
    if isinstance(stage, dict) and FOREIGN in stage:
        stage = stage["arguments"][0]
    return stage if isinstance(stage, int) and 1 <= stage <= 2 else 1


def _group_state(base: Any, group: int) -> dict[str, Any]:
    states = base if isinstance(base, list) else base["state"]
    return states[group] if isinstance(states, list) or group in states else {}


def _piece(tensors: list[StoredTensor], rank: int, begin: int, end: int, name: str) -> tuple[StoredTensor, int, int]:
    if rank >= len(tensors) or end > tensors[rank].numel():
        there = f"{tensors[rank].numel()} elements of rank {rank}" if rank < len(tensors) else f"{len(tensors)} ranks"
        raise CheckpointError(
            f"'{name}' should be at [{begin}, {end}) of rank {rank}'s flat tensor, but the files have {there}"
        )
    return tensors[rank], begin, end


def _first_elements(parts: list[StoredTensor], numel: int) -> Pieces:
    pieces = []
    for part in parts:
        take = min(part.numel(), numel)
        if take > 0:
            pieces.append((part, 0, take))
        numel -= take
    return pieces
