/// \file
/// The command lines that start a job's processes on other hosts: our own ssh, pdsh, mpirun, srun.
///
/// They are argument lists. Only what ssh and pdsh give to the far end's login shell is text for a shell, and that is
/// made by shell_quote alone. Values of variables never stand in them: programs that can pass variables on by name read
/// them from the environment they are started with.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "zeropage/launch/exports.h"
#include "zeropage/launch/hostfile.h"
#include "zeropage/launch/options.h"

namespace zeropage::launch {

/// What the commands need besides the options.
struct RunnerContext {
  std::vector<HostSlots> hosts;
  std::string command;       ///< the path of this zeropage, the same on every host
  std::string folder;        ///< to work in
  Variables variables;       ///< for the ranks: exported ones and those of environment files
  bool has_secrets = false;  ///< some come from environment files
  std::string token;
};

struct RunnerCommand {
  std::vector<std::string> argv;
  Variables env;  ///< to be started with
};

/// ssh to `host`, running the agent there.
std::vector<std::string> ssh_argv(const Options& options, const std::string& host, const std::string& command);

/// The command of `launcher`: pdsh, openmpi, mpich, impi or slurm. Errors: ConfigError for what that program cannot do
/// (unequal slots, chosen slots, secrets).
RunnerCommand runner_command(const Options& options, const std::string& launcher, const RunnerContext& context);

/// The launcher options that every host's own zeropage needs too, then the script and its arguments.
std::vector<std::string> script_words(const Options& options);

}  // namespace zeropage::launch
