/// \file
/// `zeropage config`.
#pragma once

#include <string>

namespace CLI {
class App;
}

namespace zeropage::cli {

struct ConfigCommand {
  std::string path;
  int world_size = 0;     ///< 0: batch sizes that need it stay open
  std::string from = {};  ///< "deepspeed": say of each key what it does here
  bool json = false;      ///< with `from`
};

/// Adds the subcommand to `app`; parsing writes into `command`. Returns the subcommand.
CLI::App* add_config_command(CLI::App& app, ConfigCommand& command);

struct ConfigOutcome {
  std::string text;
  int code = 0;  ///< kConfigExitCode when a key is refused
};

/// The output of the command. Errors: ConfigError as Config::from_json, or with `from` as config::explain; IoError when
/// the file cannot be read.
ConfigOutcome run_config_command(const ConfigCommand& command);

}  // namespace zeropage::cli
