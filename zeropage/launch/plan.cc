#include "zeropage/launch/plan.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "zeropage/base/error.h"
#include "zeropage/launch/cores.h"

namespace zeropage::launch {
namespace {

std::vector<std::string> rank_argv(const Options& options, const Host& host, int rank) {
  std::vector<std::string> argv;
  if (!options.no_python) {
    argv = {host.python, "-u"};
    if (options.module) argv.push_back("-m");
  }
  argv.push_back(options.script);
  if (!options.no_local_rank) argv.push_back(fmt::format("--local_rank={}", rank));
  argv.insert(argv.end(), options.script_args.begin(), options.script_args.end());
  return argv;
}

std::vector<std::vector<int>> bound_cores(const Options& options, const Host& host, int num_ranks) {
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

std::vector<std::string> notices(const Options& options, const Host& host, int num_ranks) {
  std::vector<std::string> lines;
  if (host.gpus.empty() && options.num_ranks) {
    lines.push_back(fmt::format("no GPU here: starting {} CPU rank{}", num_ranks, num_ranks == 1 ? "" : "s"));
  } else if (host.gpus.empty()) {
    lines.push_back("no GPU here: starting 1 CPU rank; --num_gpus=2 starts two");
  }
  if (host.port != options.master_port) {
    lines.push_back(fmt::format("port {} is taken: using {}", options.master_port, host.port));
  }
  return lines;
}

}  // namespace

int count_ranks(const Options& options, const Host& host) {
  const int num_gpus = static_cast<int>(host.gpus.size());
  if (num_gpus > 0 && options.num_ranks > num_gpus) {
    throw ConfigError(
        fmt::format("--num_gpus {}: there are {} GPUs ({}); ask for fewer, widen CUDA_VISIBLE_DEVICES, or "
                    "set CUDA_VISIBLE_DEVICES= to run on CPU ranks",
                    *options.num_ranks, num_gpus, fmt::join(host.gpus, ",")));
  }
  return options.num_ranks.value_or(std::max(num_gpus, 1));
}

JobPlan plan_job(const Options& options, const Host& host) {
  const int num_ranks = count_ranks(options, host);
  const auto cores = bound_cores(options, host, num_ranks);
  const std::string world = std::to_string(num_ranks);
  const std::vector<std::string> gpus(host.gpus.begin(),
                                      host.gpus.empty() ? host.gpus.end() : host.gpus.begin() + num_ranks);
  JobPlan plan;
  plan.notices = notices(options, host, num_ranks);
  for (int rank = 0; rank < num_ranks; ++rank) {
    const std::string number = std::to_string(rank);
    RankPlan one;
    one.argv = rank_argv(options, host, rank);
    one.cores = cores[rank];
    one.env = {{"MASTER_ADDR", options.master_addr},
               {"MASTER_PORT", std::to_string(host.port)},
               {"WORLD_SIZE", world},
               {"RANK", number},
               {"LOCAL_RANK", number},
               {"LOCAL_SIZE", world},
               {"LOCAL_WORLD_SIZE", world},
               {"CROSS_RANK", "0"},
               {"CROSS_SIZE", "1"},
               {"ZEROPAGE_JOB_TOKEN", host.token}};
    if (!gpus.empty()) one.env.emplace_back("CUDA_VISIBLE_DEVICES", fmt::format("{}", fmt::join(gpus, ",")));
    if (options.bind_cores) {
      one.env.emplace_back("OMP_NUM_THREADS", std::to_string(one.cores.size()));
    } else if (!host.omp_threads_set && num_ranks > 1) {
      // Every rank would otherwise start a thread per core, and they would fight for them.
      const std::size_t share = std::max<std::size_t>(host.cores.size() / num_ranks, 1);
      one.env.emplace_back("OMP_NUM_THREADS", std::to_string(share));
    }
    plan.ranks.push_back(std::move(one));
  }
  return plan;
}

}  // namespace zeropage::launch
