/// \file
/// A job on several hosts, reached by ssh.
///
/// 1. The ssh connections of all hosts are started at once. Each agent is asked for its devices and problems (agent.h).
/// 2. If any host has a problem, all problems are listed, host by host, and nothing is started.
/// 3. The first host's answer has the address and the claimed port at which the ranks meet.
/// 4. Each agent gets its ranks, including their variables, through its stdin, and never in an argument list.
/// 5. Then the supervisor treats all hosts like one (supervise.h).
#pragma once

#include <string>

#include "zeropage/launch/agent.h"
#include "zeropage/launch/runners.h"
#include "zeropage/launch/supervise.h"

namespace zeropage::launch {

/// Problems of the hosts' answers compared with each other, a line each: different versions (unless `any_version`).
std::vector<std::string> compare_reports(const std::vector<std::string>& names, const std::vector<HostReport>& reports,
                                         bool any_version);

/// The ranks of every host. `reports`: one per host of `context`. Errors: ConfigError.
std::vector<JobPlan> plan_fleet(const LaunchOptions& options, const RunnerContext& context,
                                const std::vector<HostReport>& reports);

/// Runs the whole job; returns its exit code (see supervise). `python`: the Python to use on hosts where it exists;
/// empty: each host finds one.
/// Errors: ConfigError, IoError with the failures of all hosts, before any rank is started.
int run_fleet(const LaunchOptions& options, const RunnerContext& context, const std::string& python,
              const SuperviseOptions& supervise_options);

}  // namespace zeropage::launch
