"""A small decoder-only transformer on bytes: tied embeddings, pre-norm blocks, the loss computed inside `forward`."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F


@dataclass(frozen=True)
class GptConfig:
    vocabulary: int = 256  # bytes
    context: int = 64
    layers: int = 6
    heads: int = 4
    width: int = 192
    # With Adam a weight changes by about the learning rate per step, whatever its size. At 1e-4, these factors and
    # small initial values make progress visible within a few dozen steps.
    branch_gain: float = 12.0
    output_gain: float = 8.0
    seed: int = 1


class Block(nn.Module):
    """x [B, T, C] -> [B, T, C]"""

    def __init__(self, config: GptConfig):
        super().__init__()
        self.heads = config.heads
        self.gain = config.branch_gain
        self.attention_norm = nn.LayerNorm(config.width)
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.projection = nn.Linear(config.width, config.width)
        self.mlp_norm = nn.LayerNorm(config.width)
        self.expand = nn.Linear(config.width, 4 * config.width)
        self.contract = nn.Linear(4 * config.width, config.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each [B, heads, T, C / heads]
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.gain * self.projection(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.gain * self.contract(F.gelu(self.expand(self.mlp_norm(x))))


class Gpt(nn.Module):
    def __init__(self, config: GptConfig):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocabulary, config.width)
        self.position_embedding = nn.Embedding(config.context, config.width)
        self.embedding_norm = nn.LayerNorm(config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.final_norm = nn.LayerNorm(config.width)
        self.output = nn.Linear(config.width, config.vocabulary, bias=False)
        self.output.weight = self.token_embedding.weight
        self._initialize()

    def _initialize(self) -> None:
        """Embeddings start small, which keeps the first logits near 0; a norm follows them, so only their direction
        matters."""
        generator = torch.Generator().manual_seed(self.config.seed)
        for name, parameter in self.named_parameters():
            if name.endswith("norm.weight"):
                nn.init.ones_(parameter)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                std = 0.005 if "embedding" in name else 0.02
                if name.endswith(("projection.weight", "contract.weight")):
                    std /= (2 * self.config.layers) ** 0.5  # keeps the sum over layers independent of their number
                nn.init.normal_(parameter, std=std, generator=generator)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens [B, T + 1] of integers -> the mean cross entropy of each next byte, in nats."""
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        positions = torch.arange(inputs.shape[1], device=tokens.device)
        x = self.embedding_norm(self.token_embedding(inputs) + self.position_embedding(positions))
        for block in self.blocks:
            x = block(x)
        logits = self.output(self.final_norm(x)) * self.config.output_gain
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
