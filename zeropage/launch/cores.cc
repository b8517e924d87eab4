#include "zeropage/launch/cores.h"

#include <fmt/format.h>
#include <sched.h>

#include <algorithm>
#include <fstream>
#include <set>
#include <string_view>

#include "zeropage/base/error.h"
#include "zeropage/base/whole_number.h"
#include "zeropage/launch/system_call.h"

namespace zeropage::launch {
namespace {

constexpr int kMaxCores = 8192;

/// The whole of `text` as a core number, or -1.
int core_number(std::string_view text) { return whole_number(text, 0, kMaxCores - 1).value_or(-1); }

}  // namespace

std::vector<int> parse_core_list(const std::string& list) {
  std::vector<int> cores;
  std::string_view rest = list;
  while (true) {
    const std::string_view item = rest.substr(0, rest.find(','));
    const std::size_t dash = item.find('-');
    const int first = core_number(item.substr(0, dash));
    const int last = dash == std::string_view::npos ? first : core_number(item.substr(dash + 1));
    if (first < 0 || last < first) {
      throw ConfigError(fmt::format("core list '{}': expected numbers and ranges such as 0,2-5, got '{}'", list, item));
    }
    for (int core = first; core <= last; ++core) {
      if (std::find(cores.begin(), cores.end(), core) != cores.end()) {
        throw ConfigError(fmt::format("core list '{}': core {} is named twice; name every core once", list, core));
      }
      cores.push_back(core);
    }
    if (item.size() == rest.size()) return cores;
    rest.remove_prefix(item.size() + 1);
  }
}

std::vector<int> allowed_cores() {
  // The kernel refuses a set that is smaller than its own sets.
  cpu_set_t* set = CPU_ALLOC(kMaxCores);
  const std::size_t set_bytes = CPU_ALLOC_SIZE(kMaxCores);
  std::vector<int> cores;
  if (::sched_getaffinity(0, set_bytes, set) == 0) {
    for (int core = 0; core < kMaxCores; ++core) {
      if (CPU_ISSET_S(core, set_bytes, set)) cores.push_back(core);
    }
  }
  CPU_FREE(set);
  if (cores.empty()) throw_errno("cannot read the cores this process may use", "check the container's CPU settings");
  return cores;
}

std::vector<int> one_per_unit(const std::vector<int>& cores, const std::string& sysfs) {
  std::set<std::string> seen;
  std::vector<int> kept;
  for (int core : cores) {
    std::ifstream file(fmt::format("{}/cpu{}/topology/thread_siblings_list", sysfs, core));
    std::string siblings;
    if (!std::getline(file, siblings) || seen.insert(siblings).second) kept.push_back(core);
  }
  return kept;
}

std::vector<std::vector<int>> share_cores(const std::vector<int>& cores, int num_ranks) {
  const std::size_t share = cores.size() / static_cast<std::size_t>(num_ranks);
  if (share == 0) {
    throw ConfigError(
        fmt::format("cannot bind {} ranks to {} cores; start fewer ranks or leave --bind_cores_to_rank out", num_ranks,
                    cores.size()));
  }
  std::vector<std::vector<int>> shares;
  for (int rank = 0; rank < num_ranks; ++rank) {
    const auto first = cores.begin() + static_cast<std::ptrdiff_t>(share) * rank;
    shares.emplace_back(first, first + static_cast<std::ptrdiff_t>(share));
  }
  return shares;
}

}  // namespace zeropage::launch
