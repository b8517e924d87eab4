/// \file
/// `zeropage plan --measure`: a short job on this host with the planned number of ranks.
#pragma once

#include <string>

#include "zeropage/cli/plan_command.h"

namespace zeropage::cli {

/// When `command.measure` is set: runs `python -m zeropage.tools.measure` as command.options.num_gpus ranks of this
/// host and sets `command.options.device` to the file of figures that it writes: command.save_machine, or a temporary
/// one. Its progress is printed to stderr. `argv0`: the name with which this command was called. Cost: about ten
/// seconds. Returns the path of a temporary file that the caller removes, or an empty string.
/// Errors: ConfigError when there are several hosts and no --network_rate, or the file exists; IoError when the job
/// fails.
std::string measure_machine(PlanCommand& command, const std::string& argv0);

}  // namespace zeropage::cli
