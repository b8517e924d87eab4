/// \file
/// --dry_run: describes the processes that would be started.
#pragma once

#include <string>

#include "zeropage/launch/job_plan.h"
#include "zeropage/launch/runners.h"

namespace zeropage::launch {

/// The ranks of a plan: a line "[host:rank] NAME=value ... program arguments" each, quoted as for a shell.
std::string describe_plan(const JobPlan& plan);

/// The ssh commands of a job, and the ranks that each agent would start. Values that only the hosts know are shown as
/// <...>. For variables from this host only the names are shown.
std::string describe_fleet(const LaunchOptions& options, const RunnerContext& context, const std::string& python);

/// The one command that starts everything.
std::string describe_command(const RunnerCommand& command);

}  // namespace zeropage::launch
