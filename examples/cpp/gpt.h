/// \file
/// The model of examples/gpt.py in libtorch modules: the same operators in the same order, so the values are
/// bit-identical.
#pragma once

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>

#include <cmath>
#include <cstdint>
#include <string>

namespace nn = torch::nn;

struct GptConfig {
  std::int64_t vocabulary = 256;  // bytes
  std::int64_t context = 64;
  std::int64_t layers = 6;
  std::int64_t heads = 4;
  std::int64_t width = 192;
  double branch_gain = 12.0;
  double output_gain = 8.0;
  std::uint64_t seed = 1;
};

/// Computes like Python's nn.Linear. libtorch's Linear adds the bias in a separate operator, which rounds differently.
inline at::Tensor linear(const nn::Linear& layer, const at::Tensor& x) {
  return at::linear(x, layer->weight, layer->bias);
}

/// x [B, T, C] -> [B, T, C]
struct BlockImpl : nn::Module {
  explicit BlockImpl(const GptConfig& config)
      : heads(config.heads),
        gain(config.branch_gain),
        attention_norm(register_module("attention_norm", nn::LayerNorm(nn::LayerNormOptions({config.width})))),
        qkv(register_module("qkv", nn::Linear(config.width, 3 * config.width))),
        projection(register_module("projection", nn::Linear(config.width, config.width))),
        mlp_norm(register_module("mlp_norm", nn::LayerNorm(nn::LayerNormOptions({config.width})))),
        expand(register_module("expand", nn::Linear(config.width, 4 * config.width))),
        contract(register_module("contract", nn::Linear(4 * config.width, config.width))) {}

  at::Tensor forward(at::Tensor x) {
    const auto batch = x.size(0), length = x.size(1), width = x.size(2);
    const auto parts = linear(qkv, attention_norm(x))
                           .view({batch, length, 3, heads, width / heads})
                           .permute({2, 0, 3, 1, 4})
                           .unbind(0);
    const at::Tensor mixed =
        at::scaled_dot_product_attention(parts[0], parts[1], parts[2], {}, 0.0, /*is_causal=*/true);
    x = x + linear(projection, mixed.transpose(1, 2).reshape({batch, length, width})) * gain;
    return x + linear(contract, at::gelu(linear(expand, mlp_norm(x)))) * gain;
  }

  std::int64_t heads;
  double gain;
  nn::LayerNorm attention_norm;
  nn::Linear qkv, projection;
  nn::LayerNorm mlp_norm;
  nn::Linear expand, contract;
};
TORCH_MODULE(Block);

struct GptImpl : nn::Module {
  explicit GptImpl(const GptConfig& config)
      : config(config),
        token_embedding(register_module("token_embedding", nn::Embedding(config.vocabulary, config.width))),
        position_embedding(register_module("position_embedding", nn::Embedding(config.context, config.width))),
        embedding_norm(register_module("embedding_norm", nn::LayerNorm(nn::LayerNormOptions({config.width})))),
        blocks(register_module("blocks", nn::ModuleList())),
        final_norm(register_module("final_norm", nn::LayerNorm(nn::LayerNormOptions({config.width})))) {
    for (std::int64_t i = 0; i < config.layers; ++i) blocks->push_back(Block(config));
    initialize();
  }

  /// tokens [B, T + 1] of integers -> the mean cross entropy of each next byte, in nats.
  at::Tensor forward(const at::Tensor& tokens) {
    const at::Tensor inputs = tokens.slice(1, 0, -1);
    const at::Tensor targets = tokens.slice(1, 1);
    const at::Tensor positions = at::arange(inputs.size(1), tokens.options().dtype(at::kLong));
    // In separate statements: the order of operators decides the order of their gradients, and C++ does not define
    // which operand is evaluated first.
    const at::Tensor token_vectors = token_embedding(inputs);
    at::Tensor x = embedding_norm(token_vectors + position_embedding(positions));
    for (const auto& block : *blocks) x = block->as<BlockImpl>()->forward(x);
    const at::Tensor logits = at::linear(final_norm(x), token_embedding->weight) * config.output_gain;
    return at::cross_entropy_loss(logits.flatten(0, 1).to(at::kFloat), targets.flatten());
  }

  /// Draws the same values as examples/gpt.py, from the same generator.
  void initialize() {
    torch::NoGradGuard no_grad;
    auto generator = at::make_generator<at::CPUGeneratorImpl>(config.seed);
    const auto ends_with = [](const std::string& name, const std::string& end) {
      return name.size() >= end.size() && name.compare(name.size() - end.size(), end.size(), end) == 0;
    };
    for (auto& entry : named_parameters()) {
      const std::string& name = entry.key();
      if (ends_with(name, "norm.weight")) {
        entry.value().fill_(1.0);
      } else if (ends_with(name, "bias")) {
        entry.value().zero_();
      } else {
        double std = name.find("embedding") != std::string::npos ? 0.005 : 0.02;
        if (ends_with(name, "projection.weight") || ends_with(name, "contract.weight")) {
          std /= std::sqrt(2.0 * static_cast<double>(config.layers));
        }
        entry.value().normal_(0.0, std, generator);
      }
    }
  }

  GptConfig config;
  nn::Embedding token_embedding, position_embedding;
  nn::LayerNorm embedding_norm;
  nn::ModuleList blocks;
  nn::LayerNorm final_norm;
};
TORCH_MODULE(Gpt);
