/// \file
/// Commands that the Python package carries out: doctor, report, top.
#pragma once

#include <string_view>

namespace zeropage::launch {

bool is_python_command(std::string_view name);

/// Becomes `python -m zeropage <arguments after the program's name>`, with the Python that ranks would get. Returns only by an
/// exception: ConfigError without a Python, IoError when it cannot be started.
[[noreturn]] void run_python_command(char** argv);

}  // namespace zeropage::launch
