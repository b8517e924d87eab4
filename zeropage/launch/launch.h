/// \file
/// The launcher: from options to the exit code of the job.
#pragma once

#include <string>

#include "zeropage/launch/options.h"

namespace zeropage::launch {

/// Runs the job and returns its exit code (see supervise.h). `argv0` is how this command was called: a python3 beside
/// it is preferred. When this returns, no process of the job is left. Errors: ConfigError, IoError, before anything
/// started.
int launch(const Options& options, const std::string& argv0);

}  // namespace zeropage::launch
