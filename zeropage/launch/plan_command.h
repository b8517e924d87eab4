/// \file
/// `zeropage plan`.
#pragma once

#include <cstdint>
#include <map>
#include <string>

namespace CLI {
class App;
}

namespace zeropage::launch {

struct PlanCommand {
  std::string model;
  int num_gpus = 1;
  int num_nodes = 1;
  std::string device;                          ///< empty: unknown
  std::map<std::string, std::string> figures;  ///< that replace the device's, by plan::figure_names
  std::string precision = "bf16";
  std::int64_t micro_batch = 1;
  std::int64_t accumulation_steps = 1;
  std::int64_t sequence = 2048;
  bool json = false;
  std::string write;  ///< path of the configuration to write; empty: none
};

/// Adds the subcommand to `app`; parsing writes into `command`. Returns the subcommand.
CLI::App* add_plan_command(CLI::App& app, PlanCommand& command);

/// What the command prints; writes the configuration where asked to. Errors: ConfigError, IoError.
std::string plan_listing(const PlanCommand& command);

}  // namespace zeropage::launch
