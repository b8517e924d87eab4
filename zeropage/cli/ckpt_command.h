/// \file
/// `zeropage ckpt`: lists, verifies and compares checkpoints, and exports models from them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace CLI {
class App;
}

namespace zeropage::cli {

struct CkptCommand {
  CLI::App* ls = nullptr;
  CLI::App* verify = nullptr;
  CLI::App* export_model = nullptr;
  CLI::App* diff = nullptr;
  std::string path;   ///< a checkpoint, or a folder of checkpoints
  std::string other;  ///< diff: the second step; export: the folder to write to
  std::optional<std::string> tag;
  bool json = false;
  std::string dtype = "fp32";
  std::uint64_t max_file_size = 5'000'000'000;
  bool exclude_frozen = false;
};

/// The output of a subcommand, and its exit code.
struct CkptOutcome {
  std::string text;
  int code = 0;
};

/// Adds `ckpt` and its subcommands to `app`; parsing writes into `command`. Returns `ckpt`.
CLI::App* add_ckpt_command(CLI::App& app, CkptCommand& command);

/// Runs the subcommand that was parsed. `verify` of damaged checkpoints and `diff` of different ones return a code
/// other than 0.
/// Errors: ConfigError, IoError, CheckpointError.
CkptOutcome run_ckpt_command(const CkptCommand& command);

}  // namespace zeropage::cli
