/// \file
/// A job on several hosts, reached by ssh.
///
/// 1. Every host's ssh is started at once; each agent is asked what it offers and what is wrong (agent.h).
/// 2. Anything wrong anywhere: all of it is listed, host by host, and nothing is started.
/// 3. The first host's answer says where the ranks meet: its address and the port it has claimed.
/// 4. Each agent gets its ranks, variables included, through its stdin: none stands in an argument list.
/// 5. From then on the supervisor treats the hosts like one (supervise.h).
#pragma once

#include <string>

#include "zeropage/launch/agent.h"
#include "zeropage/launch/runners.h"
#include "zeropage/launch/supervise.h"

namespace zeropage::launch {

/// What is wrong with the hosts' answers taken together, a line each: versions that differ (unless `any_version`).
std::vector<std::string> compare_reports(const std::vector<std::string>& names, const std::vector<HostReport>& reports,
                                         bool any_version);

/// The ranks of every host. `reports`: one per host of `context`. Errors: ConfigError.
std::vector<JobPlan> plan_fleet(const Options& options, const RunnerContext& context,
                                const std::vector<HostReport>& reports);

/// Runs the whole job; returns its exit code (see supervise). `python`: the one to use where it exists; empty: found
/// there.
/// Errors: ConfigError, IoError with the failures of all hosts, before any rank is started.
int run_fleet(const Options& options, const RunnerContext& context, const std::string& python,
              const SuperviseOptions& supervise_options);

}  // namespace zeropage::launch
