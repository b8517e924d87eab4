"""Architectures of diffusers: name -> sizes of the configuration, and inputs of forward. What is not given keeps its
default."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import diffusers
import torch
from torch import nn

# An input is a shape of random numbers, or a function of torch's generator that makes it.
Input = tuple[int, ...] | Callable[[torch.Generator], Any]
TWO_BLOCKS = {"block_out_channels": (16, 32), "norm_num_groups": 8, "layers_per_block": 1}
CROSS = {
    **TWO_BLOCKS,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 16,
}
CROSS_3D = {
    **CROSS,
    "attention_head_dim": 8,
    "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
    "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
}
HEADS = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2}
IMAGE = (2, 4, 8, 8)
VIDEO = (2, 4, 2, 8, 8)
TEXT = (2, 5, 16)


def steps(generator: torch.Generator) -> torch.Tensor:
    return torch.randint(0, 1000, (2,), generator=generator)


def classes(generator: torch.Generator) -> torch.Tensor:
    return torch.randint(0, 10, (2,), generator=generator)


def ones(*shape: int) -> Callable[[torch.Generator], torch.Tensor]:
    return lambda generator: torch.ones(shape)


DENOISER: dict[str, Input] = {"hidden_states": IMAGE, "encoder_hidden_states": TEXT, "timestep": steps}
MODELS: dict[str, tuple[dict[str, Any], dict[str, Input]]] = {
    "UNet2DModel": (
        {
            **TWO_BLOCKS,
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        },
        {"sample": (2, 3, 16, 16), "timestep": steps},
    ),
    "UNet2DConditionModel": (CROSS, {"sample": (2, 4, 16, 16), "timestep": steps, "encoder_hidden_states": TEXT}),
    "UNet3DConditionModel": (CROSS_3D, {"sample": (2, 4, 2, 16, 16), "timestep": steps, "encoder_hidden_states": TEXT}),
    "ControlNetModel": (
        {
            **{key: value for key, value in CROSS.items() if key != "up_block_types"},
            "conditioning_embedding_out_channels": (8, 16),
        },
        {"sample": (2, 4, 8, 8), "timestep": steps, "encoder_hidden_states": TEXT, "controlnet_cond": (2, 3, 16, 16)},
    ),
    "AutoencoderKL": ({"block_out_channels": (16,), "norm_num_groups": 8}, {"sample": (2, 3, 16, 16)}),
    "AutoencoderTiny": (
        {"encoder_block_out_channels": (8, 8, 8, 8), "decoder_block_out_channels": (8, 8, 8, 8)},
        {"sample": (2, 3, 16, 16)},
    ),
    "AutoencoderKLTemporalDecoder": (
        {"block_out_channels": (32,)},
        {"sample": (2, 3, 16, 16), "num_frames": lambda generator: 2},
    ),
    "VQModel": (
        {"block_out_channels": (16,), "norm_num_groups": 8, "num_vq_embeddings": 32},
        {"sample": (2, 3, 16, 16)},
    ),
    "DiTTransformer2DModel": (
        {**HEADS, "sample_size": 8, "norm_num_groups": 8},
        {"hidden_states": IMAGE, "timestep": steps, "class_labels": classes},
    ),
    "PixArtTransformer2DModel": (
        {
            **HEADS,
            "sample_size": 8,
            "cross_attention_dim": 32,
            "norm_num_groups": 8,
            "caption_channels": 16,
            "use_additional_conditions": False,
        },
        DENOISER,
    ),
    "SD3Transformer2DModel": (
        {
            **HEADS,
            "sample_size": 8,
            "in_channels": 4,
            "out_channels": 4,
            "joint_attention_dim": 16,
            "caption_projection_dim": 32,
            "pooled_projection_dim": 16,
            "pos_embed_max_size": 8,
        },
        {**DENOISER, "pooled_projections": (2, 16)},
    ),
    "FluxTransformer2DModel": (
        {
            **HEADS,
            "in_channels": 4,
            "num_single_layers": 2,
            "joint_attention_dim": 16,
            "pooled_projection_dim": 16,
            "axes_dims_rope": (4, 6, 6),
        },
        {
            "hidden_states": (2, 8, 4),
            "encoder_hidden_states": TEXT,
            "pooled_projections": (2, 16),
            "timestep": steps,
            "img_ids": ones(8, 3),
            "txt_ids": ones(5, 3),
        },
    ),
    "AuraFlowTransformer2DModel": (
        {
            "sample_size": 8,
            "num_mmdit_layers": 1,
            "num_single_dit_layers": 1,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 16,
            "caption_projection_dim": 32,
            "pos_embed_max_size": 16,
        },
        DENOISER,
    ),
    "SanaTransformer2DModel": (
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 16,
            "cross_attention_dim": 32,
            "caption_channels": 16,
            "sample_size": 8,
        },
        DENOISER,
    ),
    "CogVideoXTransformer3DModel": (
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "time_embed_dim": 16,
            "text_embed_dim": 16,
            "sample_width": 8,
            "sample_height": 8,
            "sample_frames": 5,
            "max_text_seq_length": 5,
        },
        {"hidden_states": (2, 2, 4, 8, 8), "encoder_hidden_states": TEXT, "timestep": steps},
    ),
    "LatteTransformer3DModel": (
        {
            **HEADS,
            "in_channels": 4,
            "sample_size": 8,
            "patch_size": 2,
            "video_length": 2,
            "norm_type": "ada_norm_single",
            "caption_channels": 16,
            "cross_attention_dim": 32,
            "num_embeds_ada_norm": 1000,
        },
        {"hidden_states": VIDEO, "encoder_hidden_states": TEXT, "timestep": steps},
    ),
    "PriorTransformer": (
        {**HEADS, "embedding_dim": 16, "num_embeddings": 5},
        {"hidden_states": (2, 16), "timestep": steps, "proj_embedding": (2, 16), "encoder_hidden_states": TEXT},
    ),
    "LTXVideoTransformer3DModel": (
        {**HEADS, "in_channels": 4, "out_channels": 4, "cross_attention_dim": 32, "caption_channels": 16},
        {
            "hidden_states": (2, 8, 4),
            "encoder_hidden_states": TEXT,
            "timestep": steps,
            "encoder_attention_mask": ones(2, 5),
            "num_frames": lambda generator: 2,
            "height": lambda generator: 2,
            "width": lambda generator: 2,
        },
    ),
    "WanTransformer3DModel": (
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "text_dim": 16,
            "freq_dim": 16,
            "ffn_dim": 32,
            "rope_max_seq_len": 32,
        },
        {"hidden_states": VIDEO, "encoder_hidden_states": TEXT, "timestep": steps},
    ),
    "MochiTransformer3DModel": (
        {**HEADS, "in_channels": 4, "pooled_projection_dim": 16, "text_embed_dim": 16, "time_embed_dim": 16},
        {
            "hidden_states": VIDEO,
            "encoder_hidden_states": TEXT,
            "timestep": steps,
            "encoder_attention_mask": lambda generator: torch.ones(2, 5, dtype=torch.bool),
        },
    ),
    "AllegroTransformer3DModel": (
        {
            **HEADS,
            "attention_head_dim": 24,
            "cross_attention_dim": 48,
            "sample_height": 8,
            "sample_width": 8,
            "sample_frames": 2,
            "caption_channels": 16,
        },
        {
            "hidden_states": VIDEO,
            "encoder_hidden_states": TEXT,
            "timestep": steps,
            "attention_mask": ones(2, 2, 8, 8),
            "encoder_attention_mask": ones(2, 5),
        },
    ),
    "CogView3PlusTransformer2DModel": (
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "text_embed_dim": 16,
            "time_embed_dim": 16,
            "condition_dim": 8,
            "pos_embed_max_size": 8,
            "sample_size": 8,
        },
        {**DENOISER, "original_size": ones(2, 2), "target_size": ones(2, 2), "crop_coords": ones(2, 2)},
    ),
}


def names() -> list[str]:
    return sorted(MODELS)


def build(name: str) -> Iterator[tuple[nn.Module, Any]]:
    """The model, with a function (seed) -> inputs."""
    sizes, shapes = MODELS[name]
    kind = getattr(diffusers, name)
    known = inspect.signature(kind.__init__).parameters
    model = kind(**{key: value for key, value in sizes.items() if key in known})

    def inputs(seed: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(seed)
        return {
            key: torch.randn(shape, generator=generator) if isinstance(shape, tuple) else shape(generator)
            for key, shape in shapes.items()
        }

    yield model, inputs
