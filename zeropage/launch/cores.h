/// \file
/// The cores of this host, and their assignment to ranks.
#pragma once

#include <string>
#include <vector>

namespace zeropage::launch {

/// The numbers in a list such as "0,2-5" (inclusive ranges), in the order given. Errors: ConfigError for an empty list,
/// junk, a range that runs backwards, or a core named twice.
std::vector<int> parse_core_list(const std::string& list);

/// The cores this process may use, ascending. Errors: IoError.
std::vector<int> allowed_cores();

/// Keeps only the first of cores that share their arithmetic units (hyperthreads). `sysfs` is /sys/devices/system/cpu.
/// Without information there all cores are kept.
std::vector<int> one_per_unit(const std::vector<int>& cores, const std::string& sysfs);

/// Equal runs of `cores`, one per rank. The remainder is not assigned, so that no rank waits for a slower one.
/// Errors: ConfigError when there are fewer cores than ranks.
std::vector<std::vector<int>> share_cores(const std::vector<int>& cores, int num_ranks);

}  // namespace zeropage::launch
