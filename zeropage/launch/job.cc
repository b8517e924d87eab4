#include "zeropage/launch/job.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <numeric>

#include "zeropage/base/error.h"
#include "zeropage/base/read_file.h"

namespace zeropage::launch {
namespace {

bool is_this_host(const std::string& name, const std::string& host_name) {
  return name == "localhost" || name == "127.0.0.1" || name == "[::1]" || name == host_name ||
         name == host_name.substr(0, host_name.find('.'));
}

/// The pool of the hostfile; empty without one.
std::vector<HostSlots> read_hostfile(const LaunchOptions& options, Job& job) {
  std::error_code error;
  if (!std::filesystem::exists(options.hostfile, error) && !error) {
    if (options.hostfile != kDefaultHostfile) {
      job.notices.push_back(fmt::format("there is no hostfile {}: only this host is used", options.hostfile));
    }
    return {};
  }
  return parse_hostfile(read_file(options.hostfile, "the hostfile", "make it a readable file"), options.hostfile);
}

/// This host as a pool. Without GPUs the filter determines the slots, because any number of CPU ranks is possible.
std::vector<HostSlots> local_pool(const LaunchOptions& options, const Surroundings& here) {
  const bool by_name = !options.include.empty() && here.num_gpus == 0;
  std::vector<HostSlots> pool = {{"localhost", std::vector<int>(by_name ? kMaxSlots : std::max(here.num_gpus, 1))}};
  std::iota(pool[0].slots.begin(), pool[0].slots.end(), 0);
  return pool;
}

Job choose_locally(const LaunchOptions& options, const Surroundings& here, Job job) {
  if (options.num_nodes.value_or(1) > 1) {
    throw ConfigError(
        fmt::format("--num_nodes {}: no hosts are known; name them in a hostfile (--hostfile)", *options.num_nodes));
  }
  if (options.include.empty() && options.exclude.empty()) return job;
  if (here.environment("CUDA_VISIBLE_DEVICES") && here.num_gpus > 0) {
    job.notices.push_back("CUDA_VISIBLE_DEVICES is ignored: --include or --exclude chooses the devices");
  }
  job.ignores_visible = true;
  const Selection selection{options.include, options.exclude, options.num_nodes, options.num_ranks};
  job.hosts = select_slots(local_pool(options, here), selection);
  // Without slots the number of CPU ranks would be unknown.
  if (here.num_gpus == 0 && !options.include.empty() && options.include.find(':') == std::string::npos) {
    job.hosts[0].slots = {0};
  }
  return job;
}

Job choose_task(const LaunchOptions& options, Task task, Job job) {
  const bool chooses = options.num_ranks || options.num_nodes || !options.include.empty() || !options.exclude.empty() ||
                       !options.launcher.empty() || options.no_ssh || options.force_multi || options.max_restarts > 0;
  if (chooses) {
    throw ConfigError(
        fmt::format("{} has started this process as rank {} of {}, and determines hosts, ranks and restarts; leave out "
                    "options about these",
                    task.starter, task.rank, task.size));
  }
  job.way = Way::kTask;
  job.task = std::move(task);
  return job;
}

void check_node_rank(const LaunchOptions& options, const std::vector<HostSlots>& hosts) {
  if (options.node_rank < 0 || options.node_rank >= static_cast<int>(hosts.size())) {
    throw ConfigError(
        fmt::format("--no_ssh needs --node_rank, the number of this host among the {} hosts of the job: 0 to {}",
                    hosts.size(), hosts.size() - 1));
  }
  if (options.master_addr.empty() && hosts.size() > 1) {
    throw ConfigError("--no_ssh needs --master_addr, the address of the host with --node_rank=0");
  }
}

/// Refuses options that have no effect if the job uses no other hosts.
void check_way(const LaunchOptions& options, Way way) {
  if (options.node_rank >= 0 && !options.no_ssh) {
    throw ConfigError(
        "--node_rank says which part of the job this host runs when each is started by hand: add --no_ssh");
  }
  if (way != Way::kSsh && way != Way::kRunner && !options.venv_script.empty()) {
    throw ConfigError("--venv_script is for jobs on several hosts; activate the environment before instead");
  }
}

}  // namespace

Job choose_job(const LaunchOptions& options, const Surroundings& here) {
  Job job;
  if (auto task = task_of(here.environment)) return choose_task(options, std::move(*task), std::move(job));
  std::vector<HostSlots> pool =
      options.world_info.empty() ? read_hostfile(options, job) : parse_filter(options.world_info, "--world_info");
  bool in_slurm = false;
  if (pool.empty()) {
    pool = slurm_hosts(here.environment);
    in_slurm = !pool.empty();
  }
  if (pool.empty()) {
    if (options.force_multi || options.no_ssh) {
      throw ConfigError(fmt::format("{} needs hosts; name them in a hostfile (--hostfile)",
                                    options.no_ssh ? "--no_ssh" : "--force_multi"));
    }
    check_way(options, job.way);
    return choose_locally(options, here, std::move(job));
  }
  job.hosts = select_slots(pool, {options.include, options.exclude, options.num_nodes, options.num_ranks});
  if (options.no_ssh) {
    check_node_rank(options, job.hosts);
    job.way = Way::kNode;
  } else if (options.force_multi || job.hosts.size() > 1 || !is_this_host(job.hosts[0].name, here.host_name)) {
    job.launcher = !options.launcher.empty() ? options.launcher : in_slurm ? "slurm" : "ssh";
    job.way = job.launcher == "ssh" ? Way::kSsh : Way::kRunner;
  }
  check_way(options, job.way);
  return job;
}

}  // namespace zeropage::launch
