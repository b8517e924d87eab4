#include "zeropage/launch/config_command.h"

#include <CLI/CLI.hpp>
#include <cerrno>
#include <fstream>
#include <iterator>

#include "zeropage/config/effective.h"
#include "zeropage/launch/fd.h"

namespace zeropage::launch {

CLI::App* add_config_command(CLI::App& app, ConfigCommand& command) {
  CLI::App* config = app.add_subcommand("config", "Print the configuration in force, and where each value comes from");
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
  std::ifstream file(command.path, std::ios::binary);
  if (!file) throw_errno("cannot read " + command.path, "check the path of the configuration");
  const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (file.bad()) throw_errno("cannot read " + command.path, "check that it is a file");
  return config::describe(text, command.path, command.world_size);
}

}  // namespace zeropage::launch
