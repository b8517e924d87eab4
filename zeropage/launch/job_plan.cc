#include "zeropage/launch/job_plan.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <numeric>

#include "zeropage/base/error.h"
#include "zeropage/launch/cores.h"
#include "zeropage/launch/host.h"

namespace zeropage::launch {
namespace {

std::vector<std::vector<int>> bound_cores(const LaunchOptions& options, const Host& host, int num_ranks) {
  if (!options.bind_cores) return std::vector<std::vector<int>>(num_ranks);
  if (options.core_list.empty()) return share_cores(host.units, num_ranks);
  const std::vector<int> cores = parse_core_list(options.core_list);
  for (int core : cores) {
    if (std::find(host.cores.begin(), host.cores.end(), core) == host.cores.end()) {
      throw ConfigError(fmt::format("--bind_core_list {}: core {} may not be used here; this process may use {}",
                                    options.core_list, core, fmt::join(host.cores, ",")));
    }
  }
  return share_cores(cores, num_ranks);
}

std::vector<std::string> notices(const LaunchOptions& options, const Host& host, const HostPart& place) {
  std::vector<std::string> lines;
  const std::size_t num_ranks = place.slots.size();
  if (host.gpus.empty() && place.name.empty()) {
    const bool asked = options.num_ranks || !options.include.empty() || place.world_size > 1;
    lines.push_back(asked ? fmt::format("no GPU here: starting {} CPU rank{}", num_ranks, num_ranks == 1 ? "" : "s")
                          : "no GPU here: starting 1 CPU rank; --num_gpus=2 starts two");
  }
  if (place.first_rank == 0 && place.master_port != options.master_port) {
    lines.push_back(fmt::format("port {} is taken: using {}", options.master_port, place.master_port));
  }
  return lines;
}

/// The entries of CUDA_VISIBLE_DEVICES; empty if there is no GPU.
std::vector<std::string> chosen_gpus(const Host& host, const HostPart& place) {
  std::vector<std::string> gpus;
  for (int slot : place.slots) {
    if (host.gpus.empty()) break;
    if (slot >= static_cast<int>(host.gpus.size())) {
      throw ConfigError(fmt::format(
          "{}: slot {} was requested, but there are {} GPUs ({}); use fewer slots, or widen "
          "CUDA_VISIBLE_DEVICES there",
          place.name.empty() ? "this host" : place.name, slot, host.gpus.size(), fmt::join(host.gpus, ",")));
    }
    gpus.push_back(host.gpus[slot]);
  }
  return gpus;
}

void add_threads(RankPlan& rank, const LaunchOptions& options, const Host& host, int local_size) {
  if (options.bind_cores) {
    rank.env.emplace_back("OMP_NUM_THREADS", std::to_string(rank.cores.size()));
  } else if (!host.omp_threads_set && local_size > 1) {
    // Otherwise every rank would start a thread per core, and the threads would compete for the cores.
    const std::size_t share = std::max<std::size_t>(host.cores.size() / local_size, 1);
    rank.env.emplace_back("OMP_NUM_THREADS", std::to_string(share));
  }
}

}  // namespace

int count_ranks(const LaunchOptions& options, const Host& host) {
  const int num_gpus = static_cast<int>(host.gpus.size());
  if (num_gpus > 0 && options.num_ranks > num_gpus) {
    throw ConfigError(
        fmt::format("--num_gpus {}: there are {} GPUs ({}); ask for fewer, widen CUDA_VISIBLE_DEVICES, or "
                    "set CUDA_VISIBLE_DEVICES= to run on CPU ranks",
                    *options.num_ranks, num_gpus, fmt::join(host.gpus, ",")));
  }
  return options.num_ranks.value_or(std::max(num_gpus, 1));
}

HostPart place_alone(const LaunchOptions& options, const Host& host) {
  HostPart place;
  place.slots.resize(count_ranks(options, host));
  std::iota(place.slots.begin(), place.slots.end(), 0);
  place.local_size = place.world_size = static_cast<int>(place.slots.size());
  place.master_addr = options.master_addr.empty() ? "127.0.0.1" : options.master_addr;
  place.master_port = host.port;
  return place;
}

std::vector<std::string> rank_argv(const LaunchOptions& options, const std::string& python, int local_rank) {
  std::vector<std::string> argv;
  if (!options.no_python) {
    argv = {python, "-u"};
    if (options.safe_path) argv.push_back(kSafePath);
    if (options.module) argv.push_back("-m");
  }
  argv.push_back(options.script);
  if (!options.no_local_rank) argv.push_back(fmt::format("--local_rank={}", local_rank));
  argv.insert(argv.end(), options.script_args.begin(), options.script_args.end());
  return argv;
}

JobPlan plan_job(const LaunchOptions& options, const Host& host, const HostPart& place) {
  const auto cores = bound_cores(options, host, place.local_size);
  const std::vector<std::string> gpus = chosen_gpus(host, place);
  JobPlan plan;
  plan.notices = notices(options, host, place);
  for (std::size_t i = 0; i < place.slots.size(); ++i) {
    const int local_rank = place.first_local_rank + static_cast<int>(i);
    RankPlan one;
    one.rank = place.first_rank + static_cast<int>(i);
    one.host = place.name;
    one.argv = rank_argv(options, host.python, local_rank);
    one.cores = cores[local_rank];
    one.env = {{"MASTER_ADDR", place.master_addr},
               {"MASTER_PORT", std::to_string(place.master_port)},
               {"WORLD_SIZE", std::to_string(place.world_size)},
               {"RANK", std::to_string(one.rank)},
               {"LOCAL_RANK", std::to_string(local_rank)},
               {"LOCAL_SIZE", std::to_string(place.local_size)},
               {"LOCAL_WORLD_SIZE", std::to_string(place.local_size)},
               {"CROSS_RANK", std::to_string(place.node)},
               {"CROSS_SIZE", std::to_string(place.num_nodes)}};
    if (!host.token.empty()) one.env.emplace_back("ZEROPAGE_JOB_TOKEN", host.token);
    if (!gpus.empty()) one.env.emplace_back("CUDA_VISIBLE_DEVICES", fmt::format("{}", fmt::join(gpus, ",")));
    add_threads(one, options, host, place.local_size);
    plan.ranks.push_back(std::move(one));
  }
  return plan;
}

}  // namespace zeropage::launch
