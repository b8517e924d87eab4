/// \file
/// The numbers of ranks over which state, or a second copy of the parameters, is divided.
#pragma once

#include <cstdint>

#include "zeropage/config/config.h"
#include "zeropage/config/settings.h"

namespace zeropage::config {

/// The value of zero_hpz_partition_size. `zero` has its stage and offload. Errors: KeyError at stages 1 and 2, and with
/// offload_param.
std::int64_t read_second_shard_ranks(const Settings& settings, const Zero& zero);

/// Hybrid sharding: the ranks of a group by zeropage.shard_ranks or mics_shard_size; 0: all ranks are one group. `zero`
/// has the other keys of its section. world_size 0: not known yet, nothing is compared with it. Errors: KeyError for a
/// number that does not divide the world, for two different numbers, and together with keys that hybrid sharding does
/// not support.
std::int64_t read_shard_ranks(const Settings& settings, const Zero& zero, int world_size);

}  // namespace zeropage::config
