#include "zeropage/cli/plan_command.h"

#include <CLI/CLI.hpp>

#include "zeropage/base/error.h"
#include "zeropage/cli/output_file.h"
#include "zeropage/planner/make_plan.h"
#include "zeropage/planner/simulate.h"

namespace zeropage::cli {
namespace {

planner::Request request_of(const PlanCommand& command) {
  PlanOptions options = command.options;
  std::erase_if(options.figures, [](const auto& figure) { return figure.second.empty(); });  // options without a value
  return planner::request_of(planner::read_model(command.model), options);
}

/// Adds the options for the model and the machine.
void add_request_options(CLI::App* plan, PlanCommand& command) {
  plan->prefix_command(false);  // otherwise inherited from the launcher, which passes all later arguments to the script
  plan->add_option("MODEL", command.model,
                   "Number of parameters (7B), .safetensors file or index, config.json, or its folder")
      ->required();
  plan->add_option("--num_gpus", command.options.num_gpus, "Devices of a host")
      ->check(CLI::Range(1, 1 << 16))
      ->type_name("N");
  plan->add_option("--num_nodes", command.options.num_nodes, "Hosts")->check(CLI::Range(1, 1 << 20))->type_name("N");
  CLI::Option* device =
      plan->add_option("--device", command.options.device,
                       "Kind of the devices: H100, H200, A100, A100-40, V100, 4090; or a file from --save_machine")
          ->type_name("NAME");
  plan->add_flag("--measure", command.measure,
                 "Measure this host's devices, links, memory and disk with all these ranks at once")
      ->excludes(device);
  plan->add_option("--disk_folder", command.disk_folder,
                   "Folder on the disk to measure; default: the working directory")
      ->type_name("DIR");
  plan->add_option("--save_machine", command.save_machine, "Write the figures of --measure to a new file, for --device")
      ->type_name("FILE");
  for (const std::string& name : planner::figure_names()) {
    plan->add_option("--" + name, command.options.figures[name],
                     planner::figure_help(name) + ", instead of the preset's or the measured value")
        ->type_name(name == "overlap"           ? "SHARE"
                    : name.ends_with("latency") ? "TIME"
                                                : "SIZE");
  }
  plan->add_flag("--json", command.json, "Print JSON");
  plan->add_option("--optimizer", command.options.optimizer,
                   "AdamW, Adam, Lamb, Lion, Adagrad, SGD, Muon, or whole: an object that needs whole parameters")
      ->type_name("NAME");
  plan->add_option("--optimizer_bytes", command.options.optimizer_bytes,
                   "With whole: bytes of state per trained element")
      ->type_name("N");
  plan->add_option("--precision", command.options.precision, "bf16, fp16 or fp32")->type_name("NAME");
  plan->add_option("--micro_batch", command.options.micro_batch, "Samples of one forward on one rank")->type_name("N");
  plan->add_option("--accumulation_steps", command.options.accumulation_steps, "Micro batches of a step")
      ->type_name("N");
  plan->add_option("--sequence", command.options.sequence, "Tokens of a sample")->type_name("N");
  plan->add_flag("--quantized_weights", command.options.quantized_weights, "Gather parameters in 8 bits at stage 3");
  plan->add_flag("--quantized_gradients", command.options.quantized_gradients,
                 "Reduce gradients in 4 bits from stage 1 on");
  plan->add_option(
          "--hpz_partition_size", command.options.hpz_partition_size,
          "Ranks of a host that keep second shards of gathered pages at stage 3, for the gathers until the next update")
      ->type_name("N");
  plan->add_option("--shard_ranks", command.options.shard_ranks,
                   "Hybrid sharding: ranks of a host that state is divided over, from stage 1 on; 0: all ranks")
      ->type_name("N");
}

}  // namespace

CLI::App* add_plan_command(CLI::App& app, PlanCommand& command) {
  CLI::App* plan = app.add_subcommand("plan", "Memory and time of a model at every stage, and a recommendation");
  add_request_options(plan, command);
  plan->add_option("--write", command.write, "Write the recommended ds_config.json to a new file")->type_name("FILE");
  return plan;
}

CLI::App* add_simulate_command(CLI::App& app, SimulateCommand& command) {
  CLI::App* simulate = app.add_subcommand(
      "simulate", "Scaling of the plan over 1, 2, 4, ... up to --num_nodes hosts, or over the devices of one host");
  add_request_options(simulate, command.plan);
  simulate->add_option("--stage", command.stage, "Use this stage at every point instead of the recommended one")
      ->check(CLI::Range(0, 3))
      ->type_name("N");
  simulate
      ->add_option(
          "--global_batch", command.global_batch,
          "Samples of a step, divided over the ranks (strong scaling); without it the work of each rank stays the same")
      ->type_name("N");
  return simulate;
}

std::string plan_listing(const PlanCommand& command) {
  const planner::Plan plan = planner::make_plan(request_of(command));
  if (!command.write.empty()) {
    if (!plan.recommendation.row) throw ConfigError("--write: " + plan.recommendation.reason);
    write_new_file("--write", command.write, plan.rows[*plan.recommendation.row].config);
  }
  return command.json ? planner::plan_json(plan) : planner::format_plan(plan);
}

std::string simulate_listing(const SimulateCommand& command) {
  const planner::Request request = request_of(command.plan);
  planner::Scaling scaling{.stage = command.stage};
  if (command.global_batch != 0) scaling.global_batch = command.global_batch;
  const auto points = planner::simulate(request, scaling);
  return command.plan.json ? planner::scaling_json(request, points) : planner::format_scaling(request, points);
}

}  // namespace zeropage::cli
