/// \file
/// The command lines that start a job's processes on other hosts: our own ssh, pdsh, mpirun, srun.
///
/// They are argument lists. Only the text that ssh and pdsh give to the remote login shell is for a shell, and only
/// shell_quote makes it. Argument lists never contain values of variables: programs that pass variables on by name read
/// them from their own environment.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "zeropage/launch/exports.h"
#include "zeropage/launch/hostfile.h"
#include "zeropage/launch/options.h"

namespace zeropage::launch {

/// Values that the commands need in addition to the options.
struct RunnerContext {
  std::vector<HostSlots> hosts;
  std::string command;       ///< the path of this zeropage, the same on every host
  std::string folder;        ///< to work in
  Variables variables;       ///< for the ranks: exported ones and those of environment files
  bool has_secrets = false;  ///< whether some are from environment files
  std::string token;
};

struct RunnerCommand {
  std::vector<std::string> argv;
  Variables env;  ///< the environment of the command
};

/// The ssh command that runs the agent on `host`.
std::vector<std::string> ssh_argv(const LaunchOptions& options, const std::string& host, const std::string& command);

/// The command of `launcher`: pdsh, openmpi, mpich, impi or slurm. Errors: ConfigError for features that the program
/// does not have (unequal slots, chosen slots, secrets).
RunnerCommand runner_command(const LaunchOptions& options, const std::string& launcher, const RunnerContext& context);

/// The launcher options that the zeropage of every host needs, too, then the script and its arguments.
std::vector<std::string> script_words(const LaunchOptions& options);

}  // namespace zeropage::launch
