#include "zeropage/cli/config_command.h"

#include <CLI/CLI.hpp>

#include "zeropage/base/json_text.h"
#include "zeropage/base/read_file.h"
#include "zeropage/config/effective.h"

namespace zeropage::cli {

CLI::App* add_config_command(CLI::App& app, ConfigCommand& command) {
  CLI::App* config = app.add_subcommand("config", "Print the effective configuration, and where each value comes from");
  config->prefix_command(false);  // else taken over from the launcher, whose scripts get all that follows
  config->add_option("FILE", command.path, "ds_config.json")->required();
  config
      ->add_option("--world_size", command.world_size,
                   "Number of ranks, for the batch sizes; without it they stay as written")
      ->check(CLI::Range(1, 1 << 24))
      ->type_name("N");
  return config;
}

std::string config_listing(const ConfigCommand& command) {
  const auto text = read_file(command.path, "the configuration", "check its path", json::kMaxDocumentBytes);
  return config::describe(text, command.path, command.world_size);
}

}  // namespace zeropage::cli
