/// \file
/// Commands that the Python package runs: doctor, report, top, ckpt import.
#pragma once

namespace zeropage::cli {

/// Whether the arguments `argc`, `argv` of the program name such a command.
bool is_python_command(int argc, char** argv);

/// Replaces this process by `python -P -m zeropage <arguments after the program's name>`, with the Python of ranks.
/// Returns only with an exception: ConfigError without a Python, IoError when it cannot be started.
[[noreturn]] void run_python_command(char** argv);

}  // namespace zeropage::cli
