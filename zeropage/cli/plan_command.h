/// \file
/// `zeropage plan` and `zeropage simulate`.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>

namespace CLI {
class App;
}

namespace zeropage::cli {

struct PlanCommand {
  std::string model;
  int num_gpus = 1;
  int num_nodes = 1;
  std::string device;                          ///< a preset or a file; empty: unknown
  bool measure = false;                        ///< measure_machine makes the file
  std::string disk_folder;                     ///< the folder to measure; empty: the working directory
  std::string save_machine;                    ///< path for the measured figures; empty: they are not kept
  std::map<std::string, std::string> figures;  ///< figures that replace the device's, by planner::figure_names
  std::string optimizer = "AdamW";
  std::int64_t optimizer_bytes = 8;  ///< state of the optimizer "whole", per trained element
  std::string precision = "bf16";
  std::int64_t micro_batch = 1;
  std::int64_t accumulation_steps = 1;
  std::int64_t sequence = 2048;
  bool quantized_weights = false;
  bool quantized_gradients = false;
  int hpz_partition_size = 1;
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
