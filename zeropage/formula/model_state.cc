#include "zeropage/formula/model_state.h"

#include <fmt/format.h>

#include <utility>

#include "zeropage/base/checked.h"
#include "zeropage/base/error.h"

namespace zeropage::formula {
namespace {

constexpr int kOptimizerShardedFrom = 1;
constexpr int kGradientsShardedFrom = 2;
constexpr int kParametersShardedFrom = 3;

/// Whether gradients that stay on the device stay in the tensors that autograd makes.
bool keeps_gradients(const StateOptions& options) {
  return options.stage >= kGradientsShardedFrom && options.world_size == 1 && options.accumulation_steps == 1 &&
         options.keeps_gradients;
}

/// The type of gradients that are not in shards.
DType gradient_dtype(const StateOptions& options) {
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

/// Elements that one rank holds of state that is sharded from stage `sharded_from` on.
std::int64_t held_numel(std::int64_t numel, int sharded_from, const StateOptions& options) {
  return options.stage >= sharded_from ? ceil_div(numel, options.world_size) : numel;
}

std::int64_t bytes_of(std::int64_t numel, std::int64_t size_bytes) {
  return checked_mul(numel, size_bytes, "model state");
}

/// Bytes of one moment of `numel` elements.
std::int64_t moment_bytes(std::int64_t numel, config::StateDtype dtype) {
  switch (dtype) {
    case config::StateDtype::kInt8: return checked_add(numel, ceil_div(numel, config::kStateBlockNumel), "model state");
    case config::StateDtype::kBFloat16: return bytes_of(numel, 2);
    case config::StateDtype::kFloat32: break;
  }
  return bytes_of(numel, 4);
}

/// Bytes of the optimizer state of `trainable_numel` elements.
std::int64_t optimizer_bytes(std::int64_t trainable_numel, const StateOptions& options) {
  const bool masters = options.precision != config::Precision::kFp32 && options.fp32_masters;
  const std::int64_t numel = held_numel(trainable_numel, kOptimizerShardedFrom, options);
  return checked_add(bytes_of(numel, masters ? 4 : 0),
                     checked_mul(options.optimizer_states, moment_bytes(numel, options.state_dtype), "model state"),
                     "model state");
}

/// Bytes of the shards of the gradients of `trainable_numel` elements.
std::int64_t gradient_shard_bytes(std::int64_t trainable_numel, const StateOptions& options) {
  return bytes_of(held_numel(trainable_numel, kGradientsShardedFrom, options), element_bytes(options.shard_dtype));
}

std::int64_t gradient_bytes(const ParameterCounts& counts, const StateOptions& options) {
  const std::int64_t whole = element_bytes(gradient_dtype(options));
  if (options.stage < kGradientsShardedFrom) return bytes_of(counts.trainable_numel, whole);
  if (!keeps_gradients(options)) return gradient_shard_bytes(counts.trainable_numel, options);
  return checked_add(bytes_of(counts.trainable_numel - counts.offloaded_numel, whole),
                     gradient_shard_bytes(counts.offloaded_numel, options), "model state");
}

std::int64_t paged_parameter_bytes(const ParameterCounts& counts, const StateOptions& options) {
  const std::int64_t all_numel = checked_add(counts.trainable_numel, counts.frozen_numel, "model state");
  return bytes_of(held_numel(all_numel - counts.persistent_numel, kParametersShardedFrom, options),
                  element_bytes(compute_dtype(options.precision)));
}

/// Bytes of the second shards, which nearby ranks keep of gathered pages.
std::int64_t second_shard_bytes(const ParameterCounts& counts, const StateOptions& options) {
  if (options.stage < kParametersShardedFrom || options.second_shard_ranks == 1) return 0;
  const std::int64_t paged_numel = counts.trainable_numel + counts.frozen_numel - counts.persistent_numel;
  return bytes_of(ceil_div(paged_numel, options.second_shard_ranks), element_bytes(compute_dtype(options.precision)));
}

}  // namespace

DType compute_dtype(config::Precision precision) {
  switch (precision) {
    case config::Precision::kBf16: return DType::kBFloat16;
    case config::Precision::kFp16: return DType::kFloat16;
    case config::Precision::kFp32: break;
  }
  return DType::kFloat32;
}

StateOptions StateOptions::from_config(const config::Config& config, int world_size) {
  const DType wide = config.fp32_masters ? DType::kFloat32 : compute_dtype(config.precision);
  const DType accumulation_dtype = config.gradients.accumulation_dtype.value_or(wide);
  return {.stage = config.zero.stage,
          .world_size = config.zero.shard_ranks > 0 ? static_cast<int>(config.zero.shard_ranks) : world_size,
          .precision = config.precision,
          .accumulation_steps = config.batch.accumulation_steps,
          .accumulation_dtype = accumulation_dtype,
          .shard_dtype = accumulation_dtype,
          .keeps_gradients = formula::keeps_gradients(config),
          .fp32_masters = config.fp32_masters,
          .optimizer_states = config::optimizer_state_count(config.optimizer),
          .state_dtype = config.state_dtype,
          .second_shard_ranks = world_size % config.zero.second_shard_ranks == 0 ? config.zero.second_shard_ranks : 1,
          .offload_parameters = config.zero.offload.parameters != config::OffloadDevice::kNone,
          .optimizer_on_disk = config.zero.offload.optimizer == config::OffloadDevice::kNvme,
          .gradients_on_disk = formula::gradients_on_disk(config)};
}

bool keeps_gradients(const config::Config& config) {
  const auto& gradients = config.gradients;
  const DType made_as = compute_dtype(config.precision);
  const DType wide = config.fp32_masters ? DType::kFloat32 : made_as;
  const DType summed_in = gradients.accumulation_dtype.value_or(wide);
  return config.batch.accumulation_steps == 1 && !gradients.prescale &&
         config.optimizer.kind != config::OptimizerKind::kClient &&
         gradients.communication_dtype.value_or(made_as) == made_as &&
         (summed_in == DType::kFloat32 || summed_in == made_as);
}

double offloaded_share(const config::Config& config) {
  const auto& offload = config.zero.offload;
  return offload.optimizer == config::OffloadDevice::kNone ? 0.0 : offload.optimizer_ratio;
}

bool gradients_on_disk(const config::Config& config) {
  const auto& offload = config.zero.offload;
  return offload.parameters == config::OffloadDevice::kNvme && offload.optimizer == config::OffloadDevice::kNvme;
}

std::vector<bool> offloaded_pages(const layout::Layout& layout, double share) {
  const auto& pages = layout.pages();
  double total_numel = 0;
  for (const layout::Page& page : pages) total_numel += page.trainable ? static_cast<double>(page.used_numel) : 0;
  std::vector<bool> offloaded(pages.size(), false);
  double taken_numel = 0;
  for (std::size_t i = pages.size(); i-- > 0;) {
    if (!pages[i].trainable) continue;
    const double numel = static_cast<double>(pages[i].used_numel);
    if (taken_numel + numel / 2 >= share * total_numel) break;
    offloaded[i] = true;
    taken_numel += numel;
  }
  return offloaded;
}

ParameterCounts count_parameters(const layout::Layout& layout, const std::vector<bool>& offloaded, bool padded,
                                 const std::function<bool(const layout::Page&)>& counted) {
  ParameterCounts counts;
  for (const layout::Page& page : layout.pages()) {
    if (page.dtype == DType::kOther || (counted && !counted(page))) continue;
    std::int64_t numel = padded ? page.padded_numel : 0;
    if (!padded) {
      for (const layout::Placement& placement : page.placements) numel += placement.numel;
    }
    (page.trainable ? counts.trainable_numel : counts.frozen_numel) += numel;
    if (page.persistent) counts.persistent_numel += numel;
    if (page.trainable && offloaded[page.index]) counts.offloaded_numel += numel;
  }
  return counts;
}

StateBytes model_state_bytes(const ParameterCounts& counts, const StateOptions& options) {
  check(options);
  StateBytes state;
  state.gradients = gradient_bytes(counts, options);
  state.optimizer = optimizer_bytes(counts.trainable_numel, options);
  state.parameters =
      checked_add(paged_parameter_bytes(counts, options),
                  bytes_of(counts.persistent_numel, element_bytes(compute_dtype(options.precision))), "model state");
  state.parameters = checked_add(state.parameters, second_shard_bytes(counts, options), "model state");
  return state;
}

PlacedBytes placed_state_bytes(const ParameterCounts& counts, const StateOptions& options) {
  PlacedBytes placed{model_state_bytes(counts, options), {}};
  placed.offloaded.optimizer = optimizer_bytes(counts.offloaded_numel, options);
  if (options.stage >= kGradientsShardedFrom) {
    placed.offloaded.gradients = gradient_shard_bytes(counts.offloaded_numel, options);
  }
  if (options.offload_parameters) placed.offloaded.parameters = paged_parameter_bytes(counts, options);
  placed.device.parameters -= placed.offloaded.parameters;
  placed.disk.parameters = bytes_of(held_numel(counts.disk_numel, kParametersShardedFrom, options),
                                    element_bytes(compute_dtype(options.precision)));
  placed.offloaded.parameters -= placed.disk.parameters;
  placed.device.gradients -= placed.offloaded.gradients;
  placed.device.optimizer -= placed.offloaded.optimizer;
  if (options.optimizer_on_disk) std::swap(placed.disk.optimizer, placed.offloaded.optimizer);
  if (options.gradients_on_disk) std::swap(placed.disk.gradients, placed.offloaded.gradients);
  return placed;
}

std::int64_t default_undo_log_bytes(const ParameterCounts& counts, const StateOptions& options) {
  const std::int64_t state = placed_state_bytes(counts, options).offloaded.optimizer;
  const std::int64_t numel = held_numel(counts.offloaded_numel, kOptimizerShardedFrom, options);
  return state == 0 ? 0 : ceil_div(state + bytes_of(numel, element_bytes(compute_dtype(options.precision))), 4);
}

}  // namespace zeropage::formula
