/// \file
/// The model of a plan: the number of its parameters and, for activations and time, its shape.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace zeropage::planner {

/// The dimensions of a transformer, for the formulas of activations and operations.
struct Shape {
  std::int64_t layers = 0;
  std::int64_t hidden = 0;
  std::int64_t vocabulary = 0;
  bool guessed = true;  ///< estimated from the number of parameters, not read from the model
};

struct Model {
  std::string name;
  std::int64_t total_numel = 0;
  std::int64_t trainable_numel = 0;
  std::int64_t active_numel = 0;      ///< used by one token; smaller than total_numel with experts
  std::int64_t largest_numel = 0;     ///< of one parameter
  std::int64_t persistent_numel = 0;  ///< in parameters below the persistence threshold's default (stage 3)
  std::int64_t muon_numel = 0;        ///< elements of trained parameters that Muon updates
  Shape shape;
};

/// Whether Muon updates a parameter without a setting of its own, by DeepSpeed's rule: it has two or more dimensions,
/// and it is neither an embedding nor the output layer.
bool takes_muon(std::string_view name, std::int64_t dimensions);

/// Adds `count` parameters of `numel` elements each, which Muon does not update. Errors: ConfigError when the sum
/// exceeds 63 bits.
void add_parameters(Model& model, std::int64_t numel, std::int64_t count = 1, bool trainable = true);

/// The same for parameters that Muon updates.
void add_matrices(Model& model, std::int64_t numel, std::int64_t count = 1, bool trainable = true);

/// "7B", "350M", "1.5T", "7e9", "124439808", "7_000_000_000" as a number. Errors: ConfigError for anything else, zero,
/// or more than 10^18.
std::int64_t parse_count(std::string_view text);

/// A model with a known number of parameters and an unknown shape. The shape is guessed: 12 * layers * hidden^2
/// parameters (ZeRO-Infinity, arXiv 2104.07857) with hidden = 128 * layers, which is roughly true of GPT-3 and Llama.
Model model_of_count(std::string name, std::int64_t total_numel);

/// A model given as the elements of each parameter; `trainable` and `muon` (whether Muon updates it) have as many
/// entries. The shape is guessed. Errors: ConfigError without parameters, for negative numbers, or lists of different
/// lengths.
Model model_of_parameters(std::string name, const std::vector<std::int64_t>& numels, const std::vector<bool>& trainable,
                          const std::vector<bool>& muon);

/// Reads a model from what the user gave: a safetensors file or index, a config.json or a folder that has one, or a
/// count.
/// Errors: ConfigError, IoError; see the readers.
Model read_model(const std::string& source);

}  // namespace zeropage::planner
