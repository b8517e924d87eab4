#include "zeropage/config/shard_ranks.h"

#include <fmt/format.h>

#include <string>

namespace zeropage::config {
namespace {

constexpr const char* kOwnKey = "zeropage.shard_ranks";
constexpr const char* kMicsKey = "zero_optimization.mics_shard_size";

/// DeepSpeed's key for the same, -1 where it is off.
std::int64_t read_mics(const Settings& settings) {
  const std::int64_t ranks = settings.integer(kMicsKey);
  if (ranks == 0) settings.fail(kMicsKey, "expected a number of ranks from 2 on, or -1 for all ranks, got 0");
  return ranks < 0 ? 0 : ranks;
}

void check_stage(const Settings& settings, const std::string& key, const Zero& zero, std::int64_t ranks) {
  const bool stage_is_known = !is_automatic(settings.at("zero_optimization.stage"));
  if (!stage_is_known || zero.stage == 0) {
    settings.fail(key, fmt::format("expected zero_optimization.stage 1, 2 or 3, where state is divided over ranks, got "
                                   "{} at stage {}; set another stage, or remove this key",
                                   ranks, stage_is_known ? "0" : "\"auto\""));
  }
  if (ranks == 1) {
    settings.fail(key,
                  "expected a group of at least 2 ranks, or 0 for all ranks, got 1; for a whole copy of the state on "
                  "every rank set zero_optimization.stage to 0");
  }
}

void check_other_keys(const Settings& settings, const std::string& key, const Zero& zero) {
  const auto refuse = [&](const char* other, const char* why) {
    settings.fail(key,
                  fmt::format("expected {} without zero_optimization.{}, {}; remove one of the two", key, other, why));
  };
  if (zero.second_shard_ranks > 1) {
    refuse("zero_hpz_partition_size", "because all gathers are among the ranks of a group already");
  }
  if (zero.quantized_gradients) {
    refuse("zero_quantized_gradients", "which codes gradients for one owner each, not for one in every group");
  }
}

}  // namespace

std::int64_t read_second_shard_ranks(const Settings& settings, const Zero& zero) {
  const std::string key = "zero_optimization.zero_hpz_partition_size";
  const std::int64_t ranks = settings.integer(key);
  const bool stage_is_known = !is_automatic(settings.at("zero_optimization.stage"));
  if (ranks > 1 && stage_is_known && zero.stage != 3) {
    settings.fail(key, fmt::format("expected zero_optimization.stage 3, where parameters are gathered for each pass, "
                                   "or 1, got {} at stage {}",
                                   ranks, zero.stage));
  }
  if (ranks > 1 && zero.offload.parameters != OffloadDevice::kNone) {
    settings.fail(key, fmt::format("expected 1 together with offload_param, because second shards would keep offloaded "
                                   "parameters in memory, got {}; remove one of the two",
                                   ranks));
  }
  return ranks;
}

std::int64_t read_shard_ranks(const Settings& settings, const Zero& zero, int world_size) {
  const std::int64_t own = settings.integer(kOwnKey);
  const std::int64_t mics = read_mics(settings);
  if (own > 0 && mics > 0 && own != mics) {
    settings.fail(kOwnKey,
                  fmt::format("expected the same number as {}, {}, got {}; give one of the two", kMicsKey, mics, own));
  }
  const std::int64_t ranks = own > 0 ? own : mics;
  if (ranks == 0) return 0;
  const std::string key = own > 0 ? kOwnKey : kMicsKey;
  check_stage(settings, key, zero, ranks);
  if (world_size > 0 && world_size % ranks != 0) {
    settings.fail(key, fmt::format("expected a divisor of the world size, {}, got {}", world_size, ranks));
  }
  if (ranks == world_size) return 0;
  check_other_keys(settings, key, zero);
  return ranks;
}

}  // namespace zeropage::config
