"""The architectures of transformers: every model type with a class that can be built from its configuration alone."""

import inspect
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from shrink import VOCABULARY, WIDTH, tiny, value_of
from torch import nn
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from trial import MOST_PARAMETERS

# The first class that there is for a model type; the bare model last.
TASKS = (
    "CAUSAL_LM",
    "SEQ_TO_SEQ_CAUSAL_LM",
    "IMAGE_TEXT_TO_TEXT",
    "MULTIMODAL_LM",
    "MASKED_LM",
    "SPEECH_SEQ_2_SEQ",
    "CTC",
    "IMAGE_CLASSIFICATION",
    "VIDEO_CLASSIFICATION",
    "SEMANTIC_SEGMENTATION",
    "DEPTH_ESTIMATION",
    "OBJECT_DETECTION",
    "PRETRAINING",
    "AUDIO_CLASSIFICATION",
)


def names() -> list[str]:
    """Model types, sorted."""
    return sorted(name for name in modeling_auto.MODEL_MAPPING_NAMES if name in CONFIG_MAPPING_NAMES)


def _classes(name: str) -> Iterator[type[nn.Module]]:
    for task in (*(f"MODEL_FOR_{task}" for task in TASKS), "MODEL"):
        found = getattr(modeling_auto, f"{task}_MAPPING_NAMES").get(name)
        for kind in [found] if isinstance(found, str) else found or ():
            if hasattr(transformers, kind):
                yield getattr(transformers, kind)


def _first(config: PreTrainedConfig, *keys: str, default: Any) -> Any:
    """The first of these keys that the configuration or one of its parts has."""
    parts = [config, *(value for value in vars(config).values() if isinstance(value, PreTrainedConfig))]
    for key in keys:
        for part in parts:
            if (found := value_of(part, key)) is not None:
                return found
    return default


def _candidates(config: PreTrainedConfig, model: nn.Module) -> list[dict[str, tuple[str, tuple[int, ...]]]]:
    """What the model may take: argument -> (kind, shape); the richest first."""
    known = inspect.signature(model.forward).parameters
    size = _first(config, "image_size", default=WIDTH)
    size = size[0] if isinstance(size, list | tuple) else size
    channels = _first(config, "num_channels", "in_channels", "in_chans", default=3)
    mels = _first(config, "num_mel_bins", "n_mels", "feature_size", default=80)
    text = ("tokens", (2, 8))
    shapes: dict[str, list[Any]] = {
        "input_ids": [text],
        "decoder_input_ids": [text],
        "pixel_values": [
            ("numbers", (2, channels, size, size)),
            ("numbers", (2, _first(config, "num_frames", default=2), channels, size, size)),
        ],
        "pixel_values_videos": [
            ("numbers", (2, _first(config, "num_frames", "frames_per_clip", default=2), channels, size, size))
        ],
        "input_values": [
            ("numbers", (2, 1600)),
            ("numbers", (2, 1, 1600)),
            ("numbers", (2, _first(config, "max_length", default=64), mels)),
        ],
        "input_features": [
            ("numbers", (2, mels, 2 * _first(config, "max_source_positions", default=64))),
            ("numbers", (2, 64, mels)),
        ],
        "bbox": [("zeros", (2, 8, 4))],
        "inputs": [("numbers", (2, 8, _first(config, "d_model", default=WIDTH))), text],
        "inputs_embeds": [("numbers", (2, 8, _first(config, "hidden_size", "d_model", default=WIDTH)))],
        "past_values": [
            (
                "numbers",
                (2, _first(config, "context_length", default=32), _first(config, "num_input_channels", default=1)),
            )
        ],
        "attention_mask": [("ones", (2, 8))],
    }
    main = getattr(model, "main_input_name", "input_ids")
    wanted = [
        name
        for name in (
            "input_ids",
            "pixel_values",
            "pixel_values_videos",
            "input_values",
            "input_features",
            "inputs",
            "past_values",
        )
        if name in known
    ]
    required = [
        n for n, p in known.items() if p.default is inspect.Parameter.empty and p.kind is p.POSITIONAL_OR_KEYWORD
    ]
    extra = [name for name in ("bbox",) if name in known]
    if "decoder_input_ids" in known:
        extra.append("decoder_input_ids")
    found = []
    for first in (wanted, [main], required):
        chosen = dict.fromkeys([*first, *required, *extra])
        if not chosen or any(name not in shapes for name in chosen):
            continue
        for index in range(max(len(shapes[name]) for name in chosen)):
            one = {name: shapes[name][min(index, len(shapes[name]) - 1)] for name in chosen}
            if one not in found:
                found.append(one)
    return found


def make_inputs(shapes: dict[str, tuple[str, tuple[int, ...]]], vocabulary: int, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name, (kind, shape) in shapes.items():
        if kind == "tokens":
            made[name] = torch.randint(3, vocabulary, shape, generator=generator)
        elif kind == "numbers":
            made[name] = torch.randn(shape, generator=generator)
        else:
            made[name] = getattr(torch, kind)(shape, dtype=torch.long)
    return made


def build(name: str) -> Iterator[tuple[nn.Module, Any]]:
    """Models of this type, each with a function (seed) -> inputs; the later ones are tried if the first one does not
    run."""
    kind = type(AutoConfig.for_model(name))
    config = tiny(kind)
    vocabulary = min(VOCABULARY, _first(config, "vocab_size", default=VOCABULARY))
    for of_task in _classes(name):
        with torch.device("meta"):
            parameters = sum(p.numel() for p in of_task(config).parameters())
        if parameters > MOST_PARAMETERS:
            raise ValueError(f"{parameters / 1e6:.0f} million parameters are too many")
        model = of_task(config)
        for shapes in _candidates(config, model):
            yield model, lambda seed, shapes=shapes: make_inputs(shapes, vocabulary, seed)
