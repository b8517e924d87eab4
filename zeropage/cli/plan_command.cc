#include "zeropage/cli/plan_command.h"

#include <CLI/CLI.hpp>
#include <algorithm>

#include "zeropage/base/error.h"
#include "zeropage/cli/new_file.h"
#include "zeropage/planner/plan.h"
#include "zeropage/planner/simulate.h"

namespace zeropage::cli {
namespace {

planner::Request request_of(const PlanCommand& command) {
  planner::Request request;
  request.model = planner::read_model(command.model);
  request.devices_per_host = command.num_gpus;
  request.hosts = command.num_nodes;
  const bool has_figures =
      std::ranges::any_of(command.figures, [](const auto& figure) { return !figure.second.empty(); });
  if (command.device.empty() && has_figures) {
    throw ConfigError("a figure was given, but not whose: say --device NAME, or --measure");
  }
  if (!command.device.empty()) {
    request.hardware = planner::read_hardware(command.device);
    for (const auto& [name, value] : command.figures) {
      if (!value.empty()) planner::set_figure(*request.hardware, name, value);
    }
  }
  request.optimizer = planner::planned_optimizer(command.optimizer, command.optimizer_bytes);
  request.precision = planner::parse_precision(command.precision);
  request.micro_batch = command.micro_batch;
  request.accumulation_steps = command.accumulation_steps;
  request.sequence = command.sequence;
  request.quantized_weights = command.quantized_weights;
  request.quantized_gradients = command.quantized_gradients;
  request.second_shard_ranks = command.hpz_partition_size;
  return request;
}

/// The model and the machine.
void add_request_options(CLI::App* plan, PlanCommand& command) {
  plan->prefix_command(false);  // else taken over from the launcher, whose scripts get all that follows
  plan->add_option("MODEL", command.model,
                   "Number of parameters (7B), .safetensors file or index, config.json or the folder with it")
      ->required();
  plan->add_option("--num_gpus", command.num_gpus, "Devices of a host")->check(CLI::Range(1, 1 << 16))->type_name("N");
  plan->add_option("--num_nodes", command.num_nodes, "Hosts")->check(CLI::Range(1, 1 << 20))->type_name("N");
  CLI::Option* device = plan->add_option("--device", command.device,
                                         "Kind of the devices: H100, H200, A100, A100-40, V100, 4090; or a file that "
                                         "--save_machine wrote")
                            ->type_name("NAME");
  plan->add_flag("--measure", command.measure,
                 "Measure this host's devices, links, memory and disk, as that many ranks at once would use them")
      ->excludes(device);
  plan->add_option("--disk_folder", command.disk_folder, "Folder on the disk to be measured; default: the working one")
      ->type_name("DIR");
  plan->add_option("--save_machine", command.save_machine, "Write what --measure found to a new file, for --device")
      ->type_name("FILE");
  for (const std::string& name : planner::figure_names()) {
    std::string words = name;
    std::ranges::replace(words, '_', ' ');
    plan->add_option("--" + name, command.figures[name],
                     "The device's or its host's " + words + ", instead of the preset or what was measured")
        ->type_name(name == "overlap"           ? "SHARE"
                    : name.ends_with("latency") ? "TIME"
                                                : "SIZE");
  }
  plan->add_flag("--json", command.json, "Print JSON");
  plan->add_option("--optimizer", command.optimizer,
                   "AdamW, Adam, Lamb, Lion, Adagrad, SGD, Muon, or whole: an object that looks at whole parameters")
      ->type_name("NAME");
  plan->add_option("--optimizer_bytes", command.optimizer_bytes, "Of whole: bytes that it keeps per trained element")
      ->type_name("N");
  plan->add_option("--precision", command.precision, "bf16, fp16 or fp32")->type_name("NAME");
  plan->add_option("--micro_batch", command.micro_batch, "Samples of one forward on one rank")->type_name("N");
  plan->add_option("--accumulation_steps", command.accumulation_steps, "Micro batches of a step")->type_name("N");
  plan->add_option("--sequence", command.sequence, "Tokens of a sample")->type_name("N");
  plan->add_flag("--quantized_weights", command.quantized_weights, "Gather parameters in 8 bits at stage 3");
  plan->add_flag("--quantized_gradients", command.quantized_gradients, "Reduce gradients in 4 bits from stage 1 on");
  plan->add_option(
          "--hpz_partition_size", command.hpz_partition_size,
          "Ranks of a host that keep what they have gathered at stage 3, for the gathers until the next update")
      ->type_name("N");
}

}  // namespace

CLI::App* add_plan_command(CLI::App& app, PlanCommand& command) {
  CLI::App* plan =
      app.add_subcommand("plan", "What a model takes at every stage, how fast it can be, and what to choose");
  add_request_options(plan, command);
  plan->add_option("--write", command.write, "Write the recommended ds_config.json to a new file")->type_name("FILE");
  return plan;
}

CLI::App* add_simulate_command(CLI::App& app, SimulateCommand& command) {
  CLI::App* simulate = app.add_subcommand(
      "simulate", "The plan on 1, 2, 4, ... up to --num_nodes hosts, or devices of one host: how well it scales");
  add_request_options(simulate, command.plan);
  simulate->add_option("--stage", command.stage, "This stage at every point, not what is recommended there")
      ->check(CLI::Range(0, 3))
      ->type_name("N");
  simulate
      ->add_option("--global_batch", command.global_batch,
                   "Samples of a step, which the ranks share (strong scaling); without it each rank keeps its own work")
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
