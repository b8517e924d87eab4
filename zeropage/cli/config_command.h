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
  int world_size = 0;  ///< 0: batch sizes that need it stay open
};

/// Adds the subcommand to `app`; parsing writes into `command`. Returns the subcommand.
CLI::App* add_config_command(CLI::App& app, ConfigCommand& command);

/// What the command prints. Errors: ConfigError as Config::from_json, IoError when the file cannot be read.
std::string config_listing(const ConfigCommand& command);

}  // namespace zeropage::cli
