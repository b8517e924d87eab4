#include "zeropage/plan/model_state.h"

#include <fmt/format.h>

#include "zeropage/base/checked.h"
#include "zeropage/base/error.h"

namespace zeropage::plan {
namespace {

constexpr int kOptimizerShardedFrom = 1;
constexpr int kGradientsShardedFrom = 2;
constexpr int kParametersShardedFrom = 3;

DType compute_dtype(config::Precision precision) {
  switch (precision) {
    case config::Precision::kBf16: return DType::kBFloat16;
    case config::Precision::kFp16: return DType::kFloat16;
    case config::Precision::kFp32: break;
  }
  return DType::kFloat32;
}

DType gradient_dtype(const StateOptions& options) {
  if (options.stage >= kGradientsShardedFrom) return options.shard_dtype;
  if (options.accumulation_steps == 1) return compute_dtype(options.precision);
  return options.accumulation_dtype.value_or(DType::kFloat32);
}

void check(const StateOptions& options) {
  if (options.stage < 0 || options.stage > 3) {
    throw ConfigError(fmt::format("model state: the stage must be 0, 1, 2 or 3, got {}", options.stage));
  }
  if (options.world_size < 1) {
    throw ConfigError(fmt::format("model state: the world size must be at least 1, got {}", options.world_size));
  }
}

}  // namespace

StateOptions StateOptions::from_config(const config::Config& config, int world_size) {
  return {.stage = config.zero.stage,
          .world_size = world_size,
          .precision = config.precision,
          .accumulation_steps = config.batch.accumulation_steps,
          .accumulation_dtype = config.gradients.accumulation_dtype,
          .optimizer_states = config::optimizer_state_count(config.optimizer)};
}

ParameterCounts count_parameters(const layout::Layout& layout, bool padded) {
  ParameterCounts counts;
  for (const layout::Page& page : layout.pages()) {
    if (page.dtype == DType::kOther) continue;
    std::int64_t numel = padded ? page.padded_numel : 0;
    if (!padded) {
      for (const layout::Placement& placement : page.placements) numel += placement.numel;
    }
    (page.trainable ? counts.trainable_numel : counts.frozen_numel) += numel;
    if (page.persistent) counts.persistent_numel += numel;
  }
  return counts;
}

StateBytes model_state_bytes(const ParameterCounts& counts, const StateOptions& options) {
  check(options);
  const auto held_numel = [&](std::int64_t numel, int sharded_from) {
    return options.stage >= sharded_from ? ceil_div(numel, options.world_size) : numel;
  };
  const auto bytes = [](std::int64_t numel, std::int64_t size_bytes) {
    return checked_mul(numel, size_bytes, "model state");
  };
  const std::int64_t all_numel = checked_add(counts.trainable_numel, counts.frozen_numel, "model state");
  const std::int64_t paged_numel = all_numel - counts.persistent_numel;
  const std::int64_t parameter_numel = held_numel(paged_numel, kParametersShardedFrom) + counts.persistent_numel;
  const std::int64_t optimizer_bytes =
      4 * (options.optimizer_states + (options.precision == config::Precision::kFp32 ? 0 : 1));
  StateBytes state;
  state.parameters = bytes(parameter_numel, element_bytes(compute_dtype(options.precision)));
  state.gradients =
      bytes(held_numel(counts.trainable_numel, kGradientsShardedFrom), element_bytes(gradient_dtype(options)));
  state.optimizer = bytes(held_numel(counts.trainable_numel, kOptimizerShardedFrom), optimizer_bytes);
  return state;
}

}  // namespace zeropage::plan
