/// \file
/// --dry_run: what would run where.
#pragma once

#include <string>

#include "zeropage/launch/job_plan.h"
#include "zeropage/launch/runners.h"

namespace zeropage::launch {

/// The ranks of a plan: a line "[host:rank] NAME=value ... program arguments" each, quoted as for a shell.
std::string describe_plan(const JobPlan& plan);

/// The ssh commands of a job, and the ranks that each agent would start. What only the hosts know stands in <...>; of
/// variables that come from here the names are shown, the values are not.
std::string describe_fleet(const Options& options, const RunnerContext& context, const std::string& python);

/// The one command that starts everything.
std::string describe_command(const RunnerCommand& command);

}  // namespace zeropage::launch
