"""Configurations of transformers with tiny sizes: the same class, its structure as it is, every width, depth and
vocabulary small.

A size is recognized by its name. SPECIAL has what a few classes need besides.
"""

import inspect
import re
from typing import Any

from transformers import PreTrainedConfig

VOCABULARY = 128
WIDTH = 32
# The first rule whose pattern is found in the name of an int decides. None leaves the value as it is.
RULES: list[tuple[str, int | None]] = [
    (
        r"num_(labels|channels|frames|stages|mel_bins|codebooks)|n_mels|^(patch|tubelet|kernel)_size|stride|version|group|_every|interval",
        None,
    ),
    (r"vocab_size|vocabulary", VOCABULARY),
    (r"(token|tokens)_id$|_index$", None),
    (r"rotary_dim|^window_size$", 4),
    (r"heads?$", 4),
    (r"(kv|q)_lora_rank|lora_rank", 16),
    (r"head_dim|head_size|d_kv|_nope_|qk_|v_head|rope_head", 8),
    (r"experts_per_tok|top_k|topk", 2),
    (r"num_(local_|routed_)?experts$|n_routed_experts|moe_num_experts", 4),
    (r"intermediate|ffn|d_ff|mlp_dim|feedforward|inner_dim|n_inner|dim_feedforward", 64),
    (r"(num|n)_.*layers?$|layers?$|num_blocks|n_layers?|depth$|n_block", 2),
    (r"max_position|n_positions|n_ctx|max_.*length|max_source|max_target|context_length|seq_len", 128),
    (r"image_size|img_size", WIDTH),
    (r"num_queries|num_latents|query_tokens|num_query", 8),
    (
        r"hidden_size|hidden_dim|d_model|n_embd|embed(ding)?_(dim|size)|^dim$|_dim$|d_embed|projection_size|_width|channels?$|d_latents",
        WIDTH,
    ),
]
LISTS: list[tuple[str, Any]] = [
    (r"depths|layers|num_blocks|layer_nums", lambda value: [1] * len(value)),
    (r"heads", lambda value: [2] * len(value)),
    (r"hidden_sizes|embed_dims?|hidden_dims?|channels|dims$|widths", lambda value: [16] * len(value)),
]
# Arguments by model type, in place of what the rules say.
MAMBA_2 = {"mamba_n_heads": 8, "mamba_d_head": 8}
SERIES = {"prediction_length": 4, "context_length": 16, "lags_sequence": [1, 2], "num_time_features": 1}
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 1, 1]}}
HALF_ROPE = {"rope_parameters": {**ROPE["rope_parameters"], "mrope_section": [1, 1, 0]}}
SPECIAL: dict[str, dict[str, Any]] = {
    "autoformer": SERIES,
    "bamba": MAMBA_2,
    "bit": {"num_groups": 4},
    "esm": {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "falcon_h1": {**MAMBA_2, "mamba_d_ssm": 64},
    "glm4v_moe_text": HALF_ROPE,
    "glm4v_text": ROPE,
    "glm_image_text": ROPE,
    "glm_ocr_text": ROPE,
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": MAMBA_2,
    "informer": SERIES,
    "jamba": {"attn_layer_offset": 1, "attn_layer_period": 2, "expert_layer_offset": 1, "expert_layer_period": 2},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 2},
    "qwen2_5_vl_text": ROPE,
    "qwen2_vl_text": ROPE,
    "time_series_transformer": SERIES,
    "wav2vec2-bert": {"vocab_size": 32},
    "wav2vec2-conformer": {"vocab_size": 32},
    "xlnet": {"d_head": 8},
    "xmod": {"default_language": "en_XX"},
}


def _key_value_heads(given: PreTrainedConfig, value: int) -> int:
    """As many as heads where there are as many, else half of them."""
    heads = next(
        (
            found
            for name in ("num_attention_heads", "n_heads", "num_heads")
            if (found := value_of(given, name)) is not None
        ),
        value,
    )
    return 4 if value == heads else 2


def _rope(value: dict[str, Any]) -> dict[str, Any]:
    """Parts of the rotated dimensions for a head of 8."""
    if "mrope_section" not in value:
        return value
    return {**value, "mrope_section": [1, 1, 0] if value.get("partial_rotary_factor", 1.0) < 1 else [2, 1, 1]}


def _shrunk_value(name: str, value: Any) -> Any:
    if isinstance(value, float) and re.search("drop|mask_.*prob|jitter|noise", name):
        return 0.0
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        for pattern, size in RULES:
            if re.search(pattern, name):
                return value if size is None else min(value, size)
        return value
    if (
        isinstance(value, list | tuple)
        and value
        and all(isinstance(item, int) and not isinstance(item, bool) for item in value)
    ):
        for pattern, make in LISTS:
            if re.search(pattern, name):
                return type(value)(make(value))
    return value


def value_of(given: PreTrainedConfig, name: str) -> Any:
    """None where the configuration has no such value, or says that each layer has its own."""
    try:
        return getattr(given, name, None)
    except Exception:  # classes raise errors of their own
        return None


def _arguments(kind: type[PreTrainedConfig], given: PreTrainedConfig) -> dict[str, Any]:
    """What has to change."""
    arguments: dict[str, Any] = {}
    for name in inspect.signature(kind.__init__).parameters:
        value = value_of(given, name)
        if value is None or name in ("self", "args", "kwargs", "transformers_version", "id2label", "label2id"):
            continue
        if isinstance(value, PreTrainedConfig):
            arguments[name] = tiny(type(value), value)
            continue
        shrunk = _shrunk_value(name, value)
        if re.search(r"(key_value|kv)_heads|num_kv|n_kv|head_kv", name) and isinstance(value, int):
            shrunk = _key_value_heads(given, value)
        elif name in ("rope_parameters", "rope_scaling") and isinstance(value, dict):
            shrunk = _rope(value)
        if re.search(r"token_id$|token_index$|_id$", name) and isinstance(shrunk, int) and shrunk >= VOCABULARY:
            shrunk = 3 + sum(map(ord, name)) % (VOCABULARY - 3)
        if shrunk != value:
            arguments[name] = shrunk
    return arguments


def _of_two_layers(kind: type[PreTrainedConfig], given: PreTrainedConfig) -> dict[str, Any]:
    """Lists that have an entry per layer, with two."""
    layers = value_of(given, "num_hidden_layers")
    lists = {name: value_of(given, name) for name in inspect.signature(kind.__init__).parameters}
    return {name: value[:2] for name, value in lists.items() if isinstance(value, list) and len(value) == layers}


def tiny(kind: type[PreTrainedConfig], given: PreTrainedConfig | None = None) -> PreTrainedConfig:
    """The configuration that `given` is (the class's default without one), with tiny sizes. Raises what the class
    raises."""
    given = given or kind()
    arguments = _arguments(kind, given) | SPECIAL.get(kind.model_type, {})
    if "use_cache" in inspect.signature(kind.__init__).parameters:
        arguments["use_cache"] = False
    try:
        return kind(**arguments)
    except Exception:  # some classes need lists with an entry per layer; those that derive the lists must get none
        lists = _of_two_layers(kind, given)
        if not lists:
            raise
        return kind(**lists | arguments)
