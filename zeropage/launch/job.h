/// \file
/// Decides where a job runs: on this host, on others through ssh, or through another program that starts processes on
/// hosts.
#pragma once

#include <string>
#include <vector>

#include "zeropage/launch/allocation.h"
#include "zeropage/launch/hostfile.h"
#include "zeropage/launch/options.h"

namespace zeropage::launch {

enum class Way {
  kHere,    ///< all ranks are on this host
  kNode,    ///< this host's part of a job whose other parts are started on their hosts (--no_ssh)
  kTask,    ///< the one rank for which mpirun or srun has started this process
  kSsh,     ///< hosts reached by ssh
  kRunner,  ///< pdsh, mpirun, srun
};

struct Job {
  Way way = Way::kHere;
  std::vector<HostSlots> hosts;  ///< empty: this host, with all it has
  std::optional<Task> task;      ///< of kTask
  std::string launcher;          ///< of kRunner
  bool ignores_visible = false;  ///< CUDA_VISIBLE_DEVICES is ignored: devices were chosen by name
  std::vector<std::string> notices;
};

/// Facts about this host for the decision.
struct Surroundings {
  Environment environment;
  std::string host_name;
  int num_gpus = 0;  ///< in the machine, whatever the value of CUDA_VISIBLE_DEVICES
};

/// Makes the decision. Reads the hostfile. Errors: ConfigError for options, files or variables that cannot be used;
/// IoError when the hostfile cannot be read.
Job choose_job(const LaunchOptions& options, const Surroundings& here);

}  // namespace zeropage::launch
