/// \file
/// Commands that the Python package carries out: doctor, report, top, ckpt import.
#pragma once

namespace zeropage::cli {

/// `argc`, `argv`: of the program.
bool is_python_command(int argc, char** argv);

/// Becomes `python -P -m zeropage <arguments after the program's name>`, with the Python that ranks would get. Returns
/// only by an
/// exception: ConfigError without a Python, IoError when it cannot be started.
[[noreturn]] void run_python_command(char** argv);

}  // namespace zeropage::cli
