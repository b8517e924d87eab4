#include <algorithm>

#include <fmt/format.h>

#include "zeropage/base/text_table.h"
#include "zeropage/planner/make_plan.h"

namespace zeropage::planner {
namespace {

std::string gb(std::int64_t bytes) {
  const double value = static_cast<double>(bytes) / 1e9;
  return fmt::format("{:.{}f}", value, value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2);
}

std::string seconds(double value) {
  return value < 1 ? fmt::format("{:.0f} ms", 1000 * value) : fmt::format("{:.2f} s", value);
}

std::string count(std::int64_t value) {
  std::string digits = std::to_string(value);
  for (auto at = static_cast<std::ptrdiff_t>(digits.size()) - 3; at > 0; at -= 3) digits.insert(at, ",");
  return digits;
}

std::string heading(const Request& request) {
  const Model& model = request.model;
  const char* precision = request.precision == config::Precision::kFp32   ? "fp32"
                          : request.precision == config::Precision::kBf16 ? "bf16"
                                                                          : "fp16";
  std::string text = fmt::format("{}: {} parameters", model.name, count(model.total_numel));
  if (model.active_numel < model.total_numel) text += fmt::format(" ({} used by a token)", count(model.active_numel));
  if (model.trainable_numel < model.total_numel) text += fmt::format(", {} trainable", count(model.trainable_numel));
  text += fmt::format("\n{} rank(s) on {} host(s){}, {}, micro batch {} x {} tokens, {} accumulation step(s)\n",
                      request.world_size(), request.hosts, request.hardware ? ", " + request.hardware->name : "",
                      precision, request.micro_batch, count(request.sequence), request.accumulation_steps);
  if (request.in_groups(/*stage=*/3)) {
    const double groups = static_cast<double>(request.world_size()) / request.shard_ranks;
    const auto sent = static_cast<std::int64_t>(8 * (groups - 1) / groups * static_cast<double>(model.trainable_numel));
    text += fmt::format(
        "Stages 1 to 3 divide state over groups of {} ranks. Groups send each other only sums of gradients: each "
        "group sends {} GB on average per reduction.\n",
        request.shard_ranks, gb(sent));
  }
  if (request.second_shard_ranks > 1 && request.hosts == 1) {
    text += request.shares_memory() ? "CPU ranks of one host have no second shards: they read each other's shards in "
                                      "shared memory.\n"
                                    : "Second shards on one host: counted for GPUs; CPU ranks have none.\n";
  }
  if (request.optimizer.is_muon()) {
    text += fmt::format("Muon updates {} of them, AdamW the others.\n", count(model.muon_numel));
  } else if (request.optimizer.type == "whole") {
    text += fmt::format("An optimizer that needs whole parameters and keeps {} bytes per element.\n",
                        request.optimizer.element_bytes);
  } else if (request.optimizer.type != "AdamW") {
    text += fmt::format("The optimizer is {}.\n", request.optimizer.type);
  }
  if (model.shape.guessed) {
    text += fmt::format(
        "Activations and time assume {} layers of width {}: the shape is guessed from the number of parameters.\n",
        model.shape.layers, count(model.shape.hidden));
  }
  return text;
}

/// The well-known table: 16 bytes per parameter, and all gradients in 16 bit.
std::string published_table(const Plan& plan) {
  const Request& request = plan.request;
  const Model& model = request.model;
  if (request.precision == config::Precision::kFp32 || request.optimizer.states != 2) return "";
  const DType element = request.precision == config::Precision::kBf16 ? DType::kBFloat16 : DType::kFloat16;
  std::string text =
      "\nModel state per rank by the published formula, 16 bytes per parameter (2 parameters, 2 gradients, 12 "
      "optimizer):\n";
  for (int stage = 0; stage <= 3; ++stage) {
    const formula::StateOptions options{.stage = stage,
                                        .world_size = request.state_ranks(stage),
                                        .precision = request.precision,
                                        .shard_dtype = element};
    const formula::StateBytes state =
        formula::model_state_bytes({model.trainable_numel, model.total_numel - model.trainable_numel, 0}, options);
    text += fmt::format("  {:<8}{:>7} GB", stage == 0 ? "DDP" : fmt::format("stage {}", stage), gb(state.total()));
    if (stage == 3) {
      const auto row = std::ranges::find_if(plan.rows, [](const Row& r) { return r.strategy.stage == 3; });
      text +=
          fmt::format("  and gathered parameters, here at most {} GB", gb(row->memory.frames + row->memory.buckets));
    }
    text += "\n";
  }
  return text +
         "Published tables differ: some count GiB (112 GB are 104 GiB), some round each kind before adding, some count "
         "gradients\n"
         "in fp32 where they are sharded, as this engine keeps them and as is counted below.\n";
}

std::string memory_table(const Plan& plan) {
  const bool hardware = plan.request.hardware.has_value();
  std::vector<Cells> lines{{"stage", "offload", "parameters", "gradients", "optimizer", "frames", "buckets",
                            "activations", "(ckpt)", "device", "(ckpt)", "host", "disk"}};
  if (hardware) lines.front().insert(lines.front().end(), {"fits", "(ckpt)"});
  lines.front().emplace_back("");
  const auto yes = [](const std::optional<bool>& value) { return value.value_or(false) ? "yes" : "no"; };
  for (const Row& row : plan.rows) {
    const MemoryEstimate& memory = row.memory;
    Cells cells{std::to_string(row.strategy.stage), offload_name(row.strategy)};
    for (std::int64_t bytes : {memory.state.parameters, memory.state.gradients, memory.state.optimizer, memory.frames,
                               memory.buckets, row.plain.activations, row.checkpointed.activations,
                               row.plain.device_bytes, row.checkpointed.device_bytes, memory.host, memory.disk}) {
      cells.push_back(gb(bytes));
    }
    if (hardware) cells.insert(cells.end(), {yes(row.plain.fits), yes(row.checkpointed.fits)});
    cells.emplace_back(row.available ? "" : "not in this version yet");
    lines.push_back(std::move(cells));
  }
  return "\nGB per rank; (ckpt): with activation checkpointing; host, disk: this rank's share there\n" +
         text_table(lines, 2);
}

std::string time_table(const Plan& plan) {
  if (!plan.request.hardware) return "";
  std::vector<Cells> lines{
      {"stage", "offload", "step", "efficiency", "limited by", "(ckpt)", "efficiency", "limited by"}};
  for (const Row& row : plan.rows) {
    Cells cells{std::to_string(row.strategy.stage), offload_name(row.strategy)};
    for (const Variant* variant : {&row.plain, &row.checkpointed}) {
      const TimeEstimate& time = *variant->time;
      cells.insert(cells.end(), {seconds(time.step_s), fmt::format("{:.0f} %", 100 * time.efficiency()), time.limit});
    }
    lines.push_back(std::move(cells));
  }
  return "\nPredicted time of an optimizer step, whether it fits or not; efficiency: computing / step\n" +
         text_table(lines, 2);
}

}  // namespace

std::string format_plan(const Plan& plan) {
  const Recommendation& choice = plan.recommendation;
  std::string name = "no row";
  if (choice.row) {
    const Strategy& strategy = plan.rows[*choice.row].strategy;
    name = fmt::format("stage {}", strategy.stage);
    if (strategy.offloads()) name += fmt::format(", offload {}", offload_name(strategy));
    if (choice.checkpointing) name += ", activation checkpointing";
  }
  return heading(plan.request) + published_table(plan) + memory_table(plan) + time_table(plan) +
         fmt::format("\nRecommended: {}: {}.\n", name, choice.reason);
}

}  // namespace zeropage::planner
