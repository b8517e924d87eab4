#include <fmt/format.h>
#include <torch/nn/module.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "zeropage/base/error.h"
#include "zeropage/base/log.h"
#include "zeropage/config/effective.h"
#include "zeropage/config/optimizers.h"
#include "zeropage/cpp/buffers.h"
#include "zeropage/cpp/engine_impl.h"
#include "zeropage/cpp/hyperparameters.h"
#include "zeropage/cpp/muon.h"
#include "zeropage/engine/agreement.h"
#include "zeropage/engine/automatic.h"
#include "zeropage/engine/data_types.h"
#include "zeropage/engine/init.h"

namespace zeropage {
namespace {

/// Refuses keys that only the Python package supports, so that none is silently ignored.
void require_none_for_python(const config::Config& config) {
  if (config.python_keys.empty()) return;
  throw ConfigError(
      fmt::format("{}: only the Python package supports this key; remove it from the configuration of a C++ program",
                  config.python_keys.front()));
}

/// Chooses the values of keys that are "auto".
config::Config choose_automatic(const config::Config& config, torch::nn::Module& model, formula::FreeMemory memory,
                                comm::Communicator& communicator) {
  engine::ModelCounts counts;
  for (const at::Tensor& parameter : model.parameters()) {
    (parameter.requires_grad() ? counts.trainable_numel : counts.frozen_numel) += parameter.numel();
    counts.largest_numel = std::max(counts.largest_numel, parameter.numel());
  }
  return engine::choose_automatic(config, counts, memory, communicator);
}

/// Moves the model to the device; the engine casts parameters page by page.
void place_model(torch::nn::Module& model, c10::Device device) {
  for (const auto& parameter : model.named_parameters()) {
    if (parameter.value().is_meta()) {
      throw ConfigError(fmt::format(
          "parameter \"{}\" is on the meta device, without values; give it values before initialize", parameter.key()));
    }
  }
  for (auto& parameter : model.parameters()) {
    if (parameter.device() != device) parameter.set_data(parameter.to(device));
  }
  for (auto& buffer : model.buffers()) {
    engine::settle(buffer);
    if (buffer.device() != device) buffer.set_data(buffer.to(device));
  }
}

/// Every parameter once. Parameters of groups that are not in the model follow after those of the model. `aliases` gets
/// the other names of tied parameters.
std::vector<engine::ParameterInput> name_parameters(torch::nn::Module& model, const std::vector<ParameterGroup>& groups,
                                                    std::map<std::string, std::vector<std::string>>& aliases) {
  std::vector<engine::ParameterInput> inputs;
  std::map<const void*, std::size_t> index_of;
  const auto add = [&](std::string name, const at::Tensor& tensor) {
    const auto [place, is_new] = index_of.emplace(tensor.unsafeGetTensorImpl(), inputs.size());
    if (is_new) inputs.push_back({std::move(name), tensor, -1});
    return place->second;
  };
  for (const auto& parameter : model.named_parameters()) {
    const auto& first = inputs[add(parameter.key(), parameter.value())].name;
    if (first != parameter.key()) aliases[first].push_back(parameter.key());
  }
  for (std::size_t g = 0; g < groups.size(); ++g) {
    for (std::size_t i = 0; i < groups[g].parameters.size(); ++i) {
      const at::Tensor& tensor = groups[g].parameters[i];
      if (!tensor.defined()) throw ConfigError(fmt::format("parameter {} of group {} is an undefined tensor", i, g));
      engine::ParameterInput& input = inputs[add(fmt::format("group{}.{}", g, i), tensor)];
      if (input.group >= 0 && input.group != static_cast<int>(g)) {
        throw ConfigError(fmt::format("parameter \"{}\" is in groups {} and {}; an optimizer updates it once",
                                      input.name, input.group, g));
      }
      input.group = static_cast<int>(g);
    }
  }
  return inputs;
}

/// After the engine has compared the models of all ranks, so that the buffers are the same ones everywhere.
void broadcast_buffers(torch::nn::Module& model, comm::Communicator& communicator) {
  for (auto& buffer : model.buffers()) {
    at::Tensor whole = buffer.detach().contiguous();
    communicator.job().broadcast(whole.data_ptr(), static_cast<std::int64_t>(whole.nbytes()), 0, {"buffers"})->wait();
    if (!whole.is_same(buffer)) buffer.detach().copy_(whole);
  }
}

/// Errors: ConfigError, also for an optimizer of other tensors than the model's.
std::unique_ptr<cpp::ClientOptimizer> take_optimizer(torch::nn::Module& model, const Options& options,
                                                     config::Config& config, int world_size) {
  const bool configured = !options.optimizer && cpp::is_muon(config);
  if (!configured && !options.parameter_groups.empty()) {
    throw ConfigError(
        "Options has both parameter_groups and an optimizer, which has groups of its own: leave parameter_groups out");
  }
  auto client = std::make_unique<cpp::ClientOptimizer>(
      configured ? cpp::make_muon(config, model, options.parameter_groups) : options.optimizer, config, world_size);
  std::set<const void*> given;
  std::int64_t foreign = 0;
  for (const auto& group : client->groups()) {
    for (const auto& parameter : group.parameters) given.insert(parameter.unsafeGetTensorImpl());
  }
  std::vector<std::string> left_out;
  std::set<const void*> own;
  for (const auto& parameter : model.named_parameters()) {
    own.insert(parameter.value().unsafeGetTensorImpl());
    if (parameter.value().requires_grad() && !given.contains(parameter.value().unsafeGetTensorImpl()))
      left_out.push_back(parameter.key());
  }
  for (const void* tensor : given) foreign += !own.contains(tensor);
  if (foreign > 0 && !left_out.empty()) {
    throw ConfigError(
        fmt::format("the optimizer in Options has {} tensors that are not in the model, and {} parameters of the model "
                    "are in none of its groups, \"{}\" first: was it made from a copy of the model, or before "
                    "parameters were replaced? Make it "
                    "from module->parameters()",
                    foreign, left_out.size(), left_out.front()));
  }
  config.optimizer = {};
  config.optimizer.kind = config::OptimizerKind::kClient;
  return client;
}

report::Progress printed_steps() {
  report::ProgressOptions options;
  options.plain_interval_s = 0.0;
  const auto now_s = [] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  };
  return report::Progress(options, now_s,
                          [](std::string_view text) { std::fwrite(text.data(), 1, text.size(), stderr); });
}

/// The monitor of the section csv_monitor. Errors: IoError.
Monitor monitor_of(const config::Config& config) {
  const auto csv = nlohmann::json::parse(config.effective_json).at("csv_monitor");
  if (!csv.at("enabled").get<bool>()) return {};
  const std::string folder = csv.at("output_path").get<std::string>();
  return Monitor((folder.empty() ? "" : folder + "/") + csv.at("job_name").get<std::string>());
}

}  // namespace

Engine initialize(torch::nn::Module& model, const Config& config, const Options& options) {
  auto impl = std::make_unique<Engine::Impl>();
  impl->model = cpp::ModelTensors(model);
  impl->world = cpp::world_of(options);
  impl->config = config::Config::from_json(config.text(), impl->world.size, config.origin());
  require_none_for_python(impl->config);
  impl->device = cpp::device_of(options);
  const auto joined = cpp::join_ranks(impl->config, impl->world, options);
  impl->communicator = joined.parameters;
  impl->config = choose_automatic(impl->config, model, engine::free_memory(impl->device, impl->world.local_size),
                                  *impl->communicator);
  const bool first = impl->world.rank == 0;
  if (impl->config.log_level) set_log_level(*impl->config.log_level);
  if (first) {
    for (const std::string& note : config::notes(config.text(), config.origin())) log_warn(note);
  }
  if (first && impl->config.dump_state) std::fprintf(stderr, "%s\n", impl->config.effective_json.c_str());
  if (first && impl->device.is_cpu() && impl->config.precision == config::Precision::kFp16) {
    log_warn(R"(fp16 on a CPU is tens of times slower than bf16: write "bf16": {"enabled": true} instead of "fp16")");
  }
  if (options.optimizer || cpp::is_muon(impl->config)) {
    impl->client = take_optimizer(model, options, impl->config, impl->world.size);
  } else if (impl->config.optimizer.kind == config::OptimizerKind::kClient) {
    throw ConfigError(fmt::format(
        "optimizer.type names an optimizer of PyTorch's, which C++ programs make themselves: pass an object "
        "of torch::optim as Options::optimizer, or write one of {}",
        config::optimizer_types()));
  }
  place_model(model, impl->device);

  std::vector<ParameterGroup> groups = impl->client ? impl->client->groups() : options.parameter_groups;
  if (groups.empty()) groups.emplace_back().parameters = model.parameters();
  auto inputs = name_parameters(model, groups, impl->aliases);
  const auto updated = [](const auto& input) { return input.group >= 0 && input.tensor.requires_grad(); };
  impl->has_optimizer =
      impl->config.optimizer.kind != config::OptimizerKind::kNone && std::any_of(inputs.begin(), inputs.end(), updated);
  std::vector<config::OptimizerParams> core_groups;
  if (impl->has_optimizer && impl->client) {
    core_groups = impl->client->engine_groups();
  } else if (impl->has_optimizer) {
    core_groups = cpp::hyperparameters(groups, impl->config.optimizer);
    impl->config.optimizer.params = config::params_for_state(core_groups);
  } else {
    for (auto& input : inputs) input.group = -1;
  }
  const auto warning = engine::settle_types(impl->config, cpp::declared_in_fp32(model), inputs);
  if (first && warning) log_warn(*warning);
  cpp::cast_buffers(model, impl->config, inputs);
  if (!impl->has_optimizer) impl->client.reset();
  if (impl->client) impl->client->note_whole(inputs);
  engine::require_same_everywhere(
      *impl->communicator,
      impl->client ? impl->client->facts() : cpp::optimizer_facts(impl->config.optimizer.kind, core_groups));
  const auto all_inputs = inputs;
  impl->core = std::make_shared<engine::Engine>(std::move(inputs), std::move(core_groups), impl->config,
                                                impl->communicator, impl->device, joined.gradients, joined.saves);
  if (impl->client) {
    impl->client->attach(*impl->core, all_inputs, impl->config, impl->communicator, impl->device);
    if (!impl->core->scheduled_lrs().empty()) impl->client->set_rates(impl->core->groups());
  }
  broadcast_buffers(model, *impl->communicator);
  if (first && impl->config.steps_per_print.value_or(0) > 0) impl->line.emplace(printed_steps());
  if (!impl->config.zeropage.preemption_folder.empty()) {
    impl->preemption = std::make_unique<session::Preemption>([core = impl->core.get()] { core->request_stop(); },
                                                             impl->config.zeropage.preemption_grace_s);
  }
  impl->observer.emplace(*impl->core, impl->config, impl->world.rank, impl->world.size, impl->device);
  if (first) impl->monitor = monitor_of(impl->config);
  return Engine(std::move(impl));
}

}  // namespace zeropage
