/// \file
/// `zeropage plan` and `zeropage simulate`.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "zeropage/planner/plan_options.h"

namespace CLI {
class App;
}

namespace zeropage::cli {

struct PlanCommand {
  std::string model;
  PlanOptions options;
  bool measure = false;      ///< measure_machine sets options.device
  std::string disk_folder;   ///< the folder to measure; empty: the working directory
  std::string save_machine;  ///< path for the measured figures; empty: they are not kept
  bool json = false;
  std::string write;  ///< path of the configuration to write; empty: none
};

/// `zeropage simulate`: the plan's model and machine, on up to num_nodes hosts.
struct SimulateCommand {
  PlanCommand plan;
  std::int64_t global_batch = 0;  ///< 0: weak scaling
  std::optional<int> stage;       ///< absent: what is recommended
};

/// Adds the subcommand to `app`; parsing writes into `command`. Returns the subcommand.
CLI::App* add_plan_command(CLI::App& app, PlanCommand& command);
CLI::App* add_simulate_command(CLI::App& app, SimulateCommand& command);

/// The output of the command. Writes the configuration if requested. Errors: ConfigError, IoError.
std::string plan_listing(const PlanCommand& command);

/// The output of the command. Errors: ConfigError, IoError.
std::string simulate_listing(const SimulateCommand& command);

}  // namespace zeropage::cli
