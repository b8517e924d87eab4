/// \file
/// The launcher: from options to the exit code of the job.
#pragma once

#include <string>

#include "zeropage/launch/options.h"

namespace zeropage::launch {

/// Runs the job and returns its exit code (see supervise.h). `argv0`: the name with which this command was called; a
/// python3 in the same folder is preferred. When this returns, all processes of the job have ended. Errors:
/// ConfigError, IoError, before anything started.
int launch(const LaunchOptions& options, const std::string& argv0);

}  // namespace zeropage::launch
