/// \file
/// The model that is planned for: how many parameters, and, for activations and time, its shape.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace zeropage::planner {

/// A transformer's measures, as the formulas of activations and operations need them.
struct Shape {
  std::int64_t layers = 0;
  std::int64_t hidden = 0;
  std::int64_t vocabulary = 0;
  bool guessed = true;  ///< from the number of parameters, not from the model
};

struct Model {
  std::string name;
  std::int64_t total_numel = 0;
  std::int64_t trainable_numel = 0;
  std::int64_t active_numel = 0;      ///< used by one token; smaller than total_numel with experts
  std::int64_t largest_numel = 0;     ///< of one parameter
  std::int64_t persistent_numel = 0;  ///< in parameters below the persistence threshold's default (stage 3)
  std::int64_t muon_numel = 0;        ///< trained ones that Muon updates
  Shape shape;
};

/// Whether Muon updates a parameter that does not say so itself: DeepSpeed's rule. It is a matrix, or several, and
/// neither an embedding nor the output layer.
bool takes_muon(std::string_view name, std::int64_t dimensions);

/// Adds `count` parameters of `numel` elements each, which Muon does not update. Errors: ConfigError when the sum
/// exceeds 63 bits.
void add_parameters(Model& model, std::int64_t numel, std::int64_t count = 1, bool trainable = true);

/// The same, of those that Muon updates.
void add_matrices(Model& model, std::int64_t numel, std::int64_t count = 1, bool trainable = true);

/// "7B", "350M", "1.5T", "7e9", "124439808", "7_000_000_000" as a number. Errors: ConfigError for anything else, zero,
/// or more than 10^18.
std::int64_t parse_count(std::string_view text);

/// A model of which only the number of parameters is known. The shape is guessed: 12 * layers * hidden^2 parameters
/// (ZeRO-Infinity, arXiv 2104.07857) with hidden = 128 * layers, as GPT-3 and Llama roughly have it.
Model model_of_count(std::string name, std::int64_t total_numel);

/// A model given as the elements of each parameter; `trainable` and `muon` (whether Muon updates it) have as many
/// entries. The shape is guessed. Errors: ConfigError without parameters, for negative numbers, or lists of different
/// lengths.
Model model_of_parameters(std::string name, const std::vector<std::int64_t>& numels, const std::vector<bool>& trainable,
                          const std::vector<bool>& muon);

/// What a user names a model by: a safetensors file or index, a config.json or a folder that has one, or a count.
/// Errors: ConfigError, IoError; see the readers.
Model read_model(const std::string& source);

}  // namespace zeropage::planner
