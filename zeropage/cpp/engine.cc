#include "zeropage/cpp/engine.h"

#include <fmt/format.h>

#include <cstdio>
#include <exception>

#include "zeropage/base/error.h"
#include "zeropage/base/exit_code.h"
#include "zeropage/base/log.h"
#include "zeropage/cpp/engine_impl.h"
#include "zeropage/report/memory_table.h"

namespace zeropage {
namespace {

/// Runs `work`. An OutOfMemoryError from it gets the bytes that the engine holds.
template <typename Work>
auto naming_memory(const engine::Engine& core, Work&& work) {
  try {
    return work();
  } catch (c10::OutOfMemoryError& error) {
    error.add_context(fmt::format("This engine holds: {}", report::format_held_memory(*core.ledger())));
    throw;
  }
}

}  // namespace

Engine::Engine(std::unique_ptr<Impl> impl) : impl_{std::move(impl)} {}
Engine::Engine(Engine&&) noexcept = default;
Engine& Engine::operator=(Engine&&) noexcept = default;
Engine::~Engine() = default;

Engine::Impl* Engine::Owned::operator->() const {
  if (!impl) throw UsageError("this zeropage::Engine is empty: release() has ended it, or it was moved from");
  return impl.get();
}

void Engine::release() {
  std::exception_ptr save_failed;
  try {
    impl_->core->finish_save();
  } catch (const CheckpointError&) {
    save_failed = std::current_exception();
  }
  impl_->core->make_parameters_whole();
  impl_.impl.reset();
  if (save_failed) std::rethrow_exception(save_failed);
}

// -- the loop

void Engine::before_forward() { impl_->core->before_forward(); }

at::Tensor Engine::backward(const at::Tensor& loss, bool retain_graph, bool scale_wrt_gas) {
  if (impl_->config.autocast_dtype && !impl_->autocast_entered) {
    throw UsageError(
        "torch_autocast is enabled, but the forward ran without it: call it in the scope of engine.autocast()");
  }
  const bool first = impl_->core->window_is_new();
  at::Tensor scaled = naming_memory(*impl_->core, [&] {
    return impl_->core->backward(loss, {retain_graph, scale_wrt_gas});
  });
  if (impl_->client) impl_->client->arm();
  impl_->observer->end_phase("backward");
  impl_->losses.add(loss, first);
  return scaled;
}

bool Engine::Impl::step() {
  if (!client) return naming_memory(*core, [&] { return core->step(); });
  core->groups() = client->engine_groups();
  const bool was_boundary =
      naming_memory(*core, [&] { return core->step([this](const auto& segments) { client->update(segments); }); });
  if (!core->scheduled_lrs().empty()) client->set_rates(core->groups());
  return was_boundary;
}

void Engine::step() {
  if (impl_->client && impl_->client->needs_closure()) {
    throw UsageError(
        "LBFGS evaluates the loss itself: call engine.step([&] { return loss_of(batch); }) instead of backward and "
        "step");
  }
  end_step(impl_->step());
}

at::Tensor Engine::step(const std::function<at::Tensor()>& closure) {
  if (!impl_->client || !impl_->client->needs_closure()) {
    throw UsageError(
        "step(closure) is for LBFGS in Options::optimizer; all others step once per loss: call backward(loss) and "
        "step()");
  }
  const at::Tensor loss = impl_->client->run([&] {
    zero_grad();
    const at::Tensor mine = closure();
    backward(mine);
    return mean_over_ranks(mine.detach());
  });
  impl_->core->accept_writes();
  end_step(impl_->step());
  return loss;
}

void Engine::Impl::tell_step(double lr) {
  observer->end_phase("step");
  if (!observer->has_file() && !observer->prints_times() && !monitor.enabled()) return;
  const auto loss = losses.mean(core.get());
  const auto times = observer->end_step(loss, lr);
  if (!monitor.enabled()) return;
  std::vector<Event> events;
  for (auto& [name, value] : observer->monitored(loss, lr, times)) {
    events.push_back({std::move(name), value, core->global_samples()});
  }
  monitor.write_events(events);
}

void Engine::end_step(bool was_boundary) {
  if (!was_boundary) return;
  impl_->tell_step(has_optimizer() ? get_lr().front() : 0.0);
  const std::int64_t every = steps_per_print().value_or(0);
  if (impl_->line && global_steps() % every == 0) impl_->line->update(progress_sample(*this, 1.0));
  impl_->core->check_save();
  const std::string& folder = impl_->config.zeropage.preemption_folder;
  if (folder.empty() || !impl_->core->stop_agreed()) return;
  save_checkpoint(folder);
  wait_for_checkpoint();
  throw Preempted(fmt::format("ended by SIGTERM after step {}; resume from {}", global_steps(), folder));
}

void Engine::zero_grad() { impl_->core->zero_grad(); }
bool Engine::is_gradient_accumulation_boundary() const { return impl_->core->is_accumulation_boundary(); }
void Engine::set_gradient_accumulation_boundary(std::optional<bool> is_boundary) {
  impl_->core->set_accumulation_boundary(is_boundary);
}
NoSync Engine::no_sync() { return {}; }
bool Engine::was_step_applied() const { return impl_->core->last_step().applied; }
std::optional<double> Engine::get_global_grad_norm() const { return impl_->core->last_step().gradient_norm; }

double Engine::mean_loss() const {
  const auto loss = impl_->losses.mean(impl_->core.get());
  if (!loss) throw UsageError("there is no loss yet: call backward first");
  return *loss;
}

// -- parameters and memory

Gathered Engine::gathered(const std::vector<at::Tensor>& parameters, std::optional<int> modifier_rank) {
  if (modifier_rank && (*modifier_rank < 0 || *modifier_rank >= world_size())) {
    throw UsageError(fmt::format("gathered: there is no rank {} to take values from; ranks are 0 to {}", *modifier_rank,
                                 world_size() - 1));
  }
  const auto ticket = impl_->core->gather(parameters);
  const auto end = [held = std::weak_ptr(impl_->core), ticket](int modifier) {
    if (const auto core = held.lock()) core->release(ticket, modifier);
  };
  return Gathered(end, modifier_rank);
}

void Engine::print_memory_table() const {
  const std::string table = memory_report().table();
  if (global_rank() != 0) return;
  std::fputs(table.c_str(), stdout);
  std::fflush(stdout);
}

void Engine::empty_partition_cache() { impl_->core->trim_memory(); }

void Engine::offload_states(const OffloadedStates& include, bool pin_memory) {
  impl_->core->offload_states({include.optimizer_states, include.gradients, include.parameters}, pin_memory);
}
void Engine::reload_states() { impl_->core->reload_states(); }

// -- monitoring

Monitor& Engine::monitor() { return impl_->monitor; }
std::string Engine::comms_summary() const {
  const auto timeline = impl_->core->timeline();
  return timeline ? format_transfers(timeline->transfers()) : "";
}

}  // namespace zeropage
