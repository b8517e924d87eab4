#include "zeropage/cli/config_command.h"

#include <CLI/CLI.hpp>

#include "zeropage/base/error.h"
#include "zeropage/base/exit_code.h"
#include "zeropage/base/json_text.h"
#include "zeropage/base/read_file.h"
#include "zeropage/config/effective.h"
#include "zeropage/config/explain.h"

namespace zeropage::cli {

CLI::App* add_config_command(CLI::App& app, ConfigCommand& command) {
  CLI::App* config = app.add_subcommand("config", "Print the effective configuration, and the source of each value");
  config->prefix_command(
      false);  // otherwise inherited from the launcher, which passes all later arguments to the script
  config->add_option("FILE", command.path, "ds_config.json")->required();
  config
      ->add_option("--world_size", command.world_size,
                   "Number of ranks, for the batch sizes; without it they are printed as written")
      ->check(CLI::Range(1, 1 << 24))
      ->type_name("N");
  auto* from = config
                   ->add_option("--from", command.from,
                                "deepspeed: explain the meaning of each key and how it differs from DeepSpeed's")
                   ->check(CLI::IsMember({"deepspeed"}))
                   ->type_name("ENGINE");
  config->add_flag("--json", command.json, "Print JSON")->needs(from);
  return config;
}

ConfigOutcome run_config_command(const ConfigCommand& command) {
  const auto text = read_file(command.path, "the configuration", "check its path", json::kMaxDocumentBytes);
  if (command.from.empty()) return {config::describe(text, command.path, command.world_size)};
  const auto explanation = config::explain(text, command.path, command.world_size);
  return {command.json ? config::explanation_json(explanation) : config::explanation_text(explanation, command.path),
          explanation.count(config::Verdict::kRefused) > 0 ? kConfigExitCode : 0};
}

}  // namespace zeropage::cli
