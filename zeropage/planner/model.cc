#include "zeropage/planner/model.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>

#include "zeropage/base/checked.h"
#include "zeropage/base/error.h"
#include "zeropage/base/json_text.h"
#include "zeropage/base/letter_case.h"
#include "zeropage/config/config.h"
#include "zeropage/planner/model_config.h"
#include "zeropage/planner/safetensors.h"

namespace zeropage::planner {
namespace {

constexpr double kMaxParameters = 1e18;
constexpr double kHiddenPerLayer = 128;
constexpr std::int64_t kGuessedVocabulary = 32'768;

Shape guess_shape(std::int64_t numel) {
  const double hidden = std::cbrt(static_cast<double>(numel) * kHiddenPerLayer / 12.0);
  Shape shape;
  shape.layers = std::max<std::int64_t>(1, std::llround(hidden / kHiddenPerLayer));
  shape.hidden = std::max<std::int64_t>(1, std::llround(hidden));
  shape.vocabulary = std::min(kGuessedVocabulary, std::max<std::int64_t>(1, numel / shape.hidden));
  return shape;
}

double unit_of(char letter) {
  switch (letter) {
    case 'k':
    case 'K': return 1e3;
    case 'm':
    case 'M': return 1e6;
    case 'b':
    case 'B':
    case 'g':
    case 'G': return 1e9;
    case 't':
    case 'T': return 1e12;
    default: return 0;
  }
}

[[noreturn]] void fail_count(std::string_view text) {
  throw ConfigError(fmt::format(
      "model: expected a number of parameters (7B, 350M, 1.3e9), a .safetensors file, an index or config.json of a "
      "model, or a folder with one; got {}, which is neither a number from 1 to 10^18 nor an existing path",
      json::quote(text)));
}

}  // namespace

void add_parameters(Model& model, std::int64_t numel, std::int64_t count, bool trainable) {
  const std::int64_t all_numel = checked_mul(numel, count, "parameters of the model");
  model.total_numel = checked_add(model.total_numel, all_numel, "parameters of the model");
  if (trainable) model.trainable_numel += all_numel;
  if (count > 0) model.largest_numel = std::max(model.largest_numel, numel);
  if (numel < config::Zero{}.persistence_threshold_numel) model.persistent_numel += all_numel;
}

void add_matrices(Model& model, std::int64_t numel, std::int64_t count, bool trainable) {
  add_parameters(model, numel, count, trainable);
  if (trainable) model.muon_numel += numel * count;
}

bool takes_muon(std::string_view name, std::int64_t dimensions) {
  const std::string lower = lower_case(name);
  return dimensions >= 2 && lower.find("embed") == lower.npos && lower.find("lm_head") == lower.npos;
}

std::int64_t parse_count(std::string_view text) {
  std::string digits;
  std::ranges::copy_if(text, std::back_inserter(digits), [](char c) { return c != '_' && c != ','; });
  double unit = 1;
  if (!digits.empty() && unit_of(digits.back()) > 0) {
    unit = unit_of(digits.back());
    digits.pop_back();
  }
  double number = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), number);
  if (error != std::errc() || end != digits.data() + digits.size()) fail_count(text);
  const double count = std::round(number * unit);
  if (!(count >= 1 && count <= kMaxParameters)) fail_count(text);
  return static_cast<std::int64_t>(count);
}

Model model_of_count(std::string name, std::int64_t total_numel) {
  Model model;
  model.name = std::move(name);
  model.total_numel = model.trainable_numel = model.active_numel = total_numel;
  model.shape = guess_shape(total_numel);
  const std::int64_t largest_numel = model.shape.hidden * std::max(4 * model.shape.hidden, model.shape.vocabulary);
  model.largest_numel = std::min(total_numel, largest_numel);
  // Minus two embeddings, as large models have them. In a small model the two would be larger than the model.
  model.muon_numel = std::max<std::int64_t>(0, total_numel - 2 * model.shape.vocabulary * model.shape.hidden);
  return model;
}

Model model_of_parameters(std::string name, const std::vector<std::int64_t>& numels, const std::vector<bool>& trainable,
                          const std::vector<bool>& muon) {
  if (numels.size() != trainable.size() || numels.size() != muon.size()) {
    throw ConfigError(fmt::format("model {}: expected as many flags as parameters, got {}, {} and {}", name,
                                  trainable.size(), muon.size(), numels.size()));
  }
  Model model;
  model.name = std::move(name);
  for (std::size_t i = 0; i < numels.size(); ++i) {
    (muon[i] ? add_matrices : add_parameters)(model, numels[i], 1, trainable[i]);
  }
  if (model.total_numel == 0) throw ConfigError(fmt::format("model {}: expected parameters, got none", model.name));
  model.active_numel = model.total_numel;
  model.shape = guess_shape(model.total_numel);
  return model;
}

Model read_model(const std::string& source) {
  namespace fs = std::filesystem;
  std::error_code ignored;
  fs::path path(source);
  if (fs::is_directory(path, ignored)) path /= "config.json";
  if (path.extension() == ".safetensors") return read_safetensors(path);
  if (path.filename().string().ends_with(".safetensors.index.json")) return read_safetensors_index(path);
  if (path.extension() == ".json" || fs::exists(path, ignored)) return read_model_config(path);
  return model_of_count(source, parse_count(source));
}

}  // namespace zeropage::planner
