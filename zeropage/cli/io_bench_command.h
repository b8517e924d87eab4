/// \file
/// `zeropage io-bench`.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace CLI {
class App;
}

namespace zeropage::cli {

struct IoBenchCommand {
  std::vector<std::string> folders;
  int size_mib = 256;  ///< moved per measurement
  int rounds = 2;
  bool quick = false;  ///< four combinations instead of twenty
  std::string write;   ///< path of the configuration to write; empty: none
};

/// Adds the subcommand to `app`; parsing writes into `command`. Returns the subcommand.
CLI::App* add_io_bench_command(CLI::App& app, IoBenchCommand& command);

/// Measures every combination of block size and depth. Calls `print` with each line of the table when it is measured,
/// and at the end with the best `aio` section. Writes the configuration if requested. Errors: as io::Store,
/// ConfigError, IoError.
void run_io_bench(const IoBenchCommand& command, const std::function<void(const std::string&)>& print);

}  // namespace zeropage::cli
