#include "zeropage/engine/checkpoint.h"

#include <ATen/Context.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <mutex>
#include <set>
#include <utility>

#include "zeropage/base/error.h"
#include "zeropage/base/log.h"
#include "zeropage/cpp/engine_impl.h"
#include "zeropage/cpp/host_state.h"
#include "zeropage/engine/model_file.h"
#include "zeropage/session/resume_check.h"

namespace zeropage {
namespace {

cpp::Tensors buffers_of(const cpp::ModelTensors& model) {
  const auto buffers = model.buffers();
  return {buffers.begin(), buffers.end()};
}

at::Tensor random_state(c10::Device device) {
  at::Generator generator = at::globalContext().defaultGenerator(device);
  const std::scoped_lock lock(generator.mutex());
  return generator.get_state();
}

void set_random_state(const at::Tensor& state, c10::Device device) {
  if (!state.defined()) return;
  at::Generator generator = at::globalContext().defaultGenerator(device);
  const std::scoped_lock lock(generator.mutex());
  try {
    generator.set_state(state);
  } catch (const c10::Error& error) {
    throw CheckpointError(fmt::format("the state of {}'s random generator in the checkpoint cannot be used: {}",
                                      device.str(), error.what_without_backtrace()));
  }
}

session::BufferShapes shapes_of(const cpp::Tensors& buffers) {
  session::BufferShapes shapes;
  for (const auto& [name, buffer] : buffers) shapes.emplace(name, buffer.sizes().vec());
  return shapes;
}

/// Differences between a checkpoint and the engine, in addition to those that the core finds itself.
std::vector<std::string> all_differences(const cpp::HostState& host, const session::ResumeFacts& program,
                                         const session::ResumeScope& scope) {
  auto found = session::differences(program, {shapes_of(host.buffers), host.optimizer, host.groups.size()}, scope);
  if (scope.with_optimizer && !host.cannot_follow.empty()) {
    found.push_back(
        fmt::format("the checkpoint's parameter groups have {}, which {} here does not support; use the optimizer of "
                    "the checkpoint, or pass load_optimizer_states=False",
                    host.cannot_follow, program.optimizer.value_or("no optimizer")));
  }
  return found;
}

}  // namespace

std::string Engine::save_checkpoint(const std::string& save_dir, const SaveOptions& options) {
  engine::SaveOptions request;
  request.folder = save_dir;
  request.tag = options.tag.value_or(fmt::format("global_step{}", global_steps()));
  request.latest = options.save_latest;
  request.exclude_frozen = options.exclude_frozen_parameters;
  request.aliases = impl_->aliases;
  cpp::HostState host{options.client_state, optimizer_name(), impl_->core->groups()};
  host.buffers = buffers_of(impl_->model);
  if (impl_->client) {
    host.options = impl_->client->options();
    request.caller_state = impl_->client->states();
    if (!impl_->client->is_saved() && global_rank() == 0) {
      log_warn(
          fmt::format("the checkpoint has no state of the optimizer {}: it is LBFGS, or a class that does not save and "
                      "load as those of torch::optim do",
                      impl_->client->name()));
    }
  }
  request.host_json = cpp::host_state_to_json(host, impl_->config.optimizer.kind, request.host_tensors);
  if (global_rank() != 0) request.host_tensors.clear();
  if (impl_->client) request.host_tensors.merge(impl_->client->whole_states(global_rank()));
  request.host_tensors.emplace(cpp::random_name(global_rank(), false), random_state(at::kCPU));
  if (!device().is_cpu()) request.host_tensors.emplace(cpp::random_name(global_rank(), true), random_state(device()));
  return impl_->core->save_checkpoint(request);
}

void Engine::wait_for_checkpoint() { impl_->core->finish_save(); }

void Engine::save_16bit_model(const std::string& save_dir, const std::string& save_filename,
                              bool exclude_frozen_parameters) {
  engine::NamedTensors tensors;
  std::set<const void*> seen;
  for (const auto& [name, parameter] : impl_->model.parameters()) {
    if (exclude_frozen_parameters && !parameter.requires_grad()) continue;
    if (seen.insert(parameter.unsafeGetTensorImpl()).second) tensors.emplace_back(name, parameter.detach());
  }
  for (const auto& [name, buffer] : impl_->model.buffers()) tensors.emplace_back(name, buffer);
  engine::save_model_file(*impl_->core, *impl_->communicator, save_dir + "/" + save_filename, tensors);
}

std::optional<LoadedCheckpoint> Engine::load_checkpoint(const std::string& load_dir, const LoadOptions& options) {
  auto& core = *impl_->core;
  const auto found = core.find_checkpoint(load_dir, options.tag);
  if (!found) {
    if (global_rank() == 0) log_warn(fmt::format("there is no checkpoint in {}: nothing was loaded", load_dir));
    return std::nullopt;
  }
  const bool with_optimizer = options.load_optimizer_states && !options.load_module_only && has_optimizer();
  const bool with_schedule = options.load_lr_scheduler_states && !options.load_module_only;
  const cpp::Tensors buffers = buffers_of(impl_->model);
  checkpoint::Checkpoint& step = *found;
  cpp::HostState host;
  std::map<int, cpp::ArchiveItems> client_states;
  const bool with_client = with_optimizer && impl_->client;
  std::string problem;
  try {
    host = cpp::read_host_state(step, global_rank(), impl_->config.optimizer.kind, impl_->config.optimizer.params,
                                impl_->client ? impl_->client->options() : std::vector<cpp::ArchiveItems>{});
    if (with_client && !impl_->client->is_saved()) {
      throw CheckpointError(fmt::format(
          "checkpoints have no state of the optimizer {}; pass load_optimizer_states=False", impl_->client->name()));
    }
    if (with_client) client_states = impl_->client->read(step);
    const session::ResumeFacts program{shapes_of(buffers), optimizer_name(), core.groups().size()};
    const session::ResumeScope scope{options.load_module_strict, with_optimizer, host.excluded};
    problem = fmt::format("{}", fmt::join(all_differences(host, program, scope), "\n    "));
  } catch (const Error& error) {
    problem = error.what();  // the other ranks must be informed
  }
  engine::LoadOptions request;
  request.strict = options.load_module_strict;
  request.optimizer_states = with_optimizer;
  request.schedule = with_schedule;
  request.module_only = options.load_module_only;
  request.problem = problem;
  const auto report = core.load_checkpoint(step, request);

  c10::AutoGradMode no_grad(false);
  for (const auto& [name, buffer] : buffers) {
    if (const auto stored = host.buffers.find(name); stored != host.buffers.end()) buffer.copy_(stored->second);
  }
  if (with_optimizer) {
    if (with_client) impl_->client->load(client_states, host.options);
    core.groups() = with_client ? impl_->client->engine_groups() : host.groups;
    set_random_state(host.random, at::kCPU);
    if (!device().is_cpu()) set_random_state(host.device_random, device());
  }
  if (with_schedule && !core.scheduled_lrs().empty()) core.set_schedule_iteration(core.schedule_iteration());
  const auto warning = report.warning();
  if (global_rank() == 0 && warning) log_warn(fmt::format("{}: {}", step.path(), *warning));
  return LoadedCheckpoint{step.path(), std::move(host.client)};
}

}  // namespace zeropage
