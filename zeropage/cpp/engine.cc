#include "zeropage/cpp/engine.h"

#include <ATen/ops/stack.h>
#include <fmt/format.h>

#include <cstdio>
#include <exception>

#include "zeropage/base/error.h"
#include "zeropage/cpp/engine_impl.h"

namespace zeropage {

Gathered::Gathered(Engine& engine, std::int64_t ticket, int modifier_rank)
    : engine_(&engine), ticket_(ticket), modifier_rank_(modifier_rank), exceptions_(std::uncaught_exceptions()) {}

Gathered::Gathered(Gathered&& other) noexcept
    : engine_(std::exchange(other.engine_, nullptr)),
      ticket_(other.ticket_),
      modifier_rank_(other.modifier_rank_),
      exceptions_(other.exceptions_) {}

Gathered::~Gathered() noexcept(false) {
  if (engine_ == nullptr) return;
  const bool failing = std::uncaught_exceptions() > exceptions_;
  engine_->impl_->core->release(ticket_, failing ? -1 : modifier_rank_);
}

Engine::Engine(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Engine::Engine(Engine&&) noexcept = default;
Engine::~Engine() = default;

// -- the loop

void Engine::before_forward() { impl_->core->before_forward(); }

at::Tensor Engine::backward(const at::Tensor& loss, bool retain_graph, bool scale_wrt_gas) {
  at::Tensor scaled = impl_->core->backward(loss, {retain_graph, scale_wrt_gas});
  if (impl_->steps_of_losses != global_steps()) {
    impl_->losses.clear();
    impl_->steps_of_losses = global_steps();
  }
  impl_->losses.push_back(loss.detach());
  return scaled;
}

void Engine::step() {
  const bool boundary = impl_->core->step();
  const std::int64_t every = steps_per_print().value_or(0);
  if (boundary && impl_->line && global_steps() % every == 0) impl_->line->update(progress_sample(*this, 1.0));
}

void Engine::zero_grad() { impl_->core->zero_grad(); }
bool Engine::is_gradient_accumulation_boundary() const { return impl_->core->is_accumulation_boundary(); }
void Engine::set_gradient_accumulation_boundary(std::optional<bool> is_boundary) {
  impl_->core->set_accumulation_boundary(is_boundary);
}
NoSync Engine::no_sync() { return {}; }
bool Engine::was_step_applied() const { return impl_->core->last_step().applied; }
std::optional<double> Engine::get_global_grad_norm() const {
  return global_steps() > 0 ? std::optional<double>(impl_->core->last_step().gradient_norm) : std::nullopt;
}

double Engine::mean_loss() const {
  if (impl_->losses.empty()) throw UsageError("there is no loss yet: call backward first");
  std::vector<at::Tensor> losses;
  for (const auto& loss : impl_->losses) losses.push_back(loss.to(at::kFloat));
  return at::stack(losses).mean().item<double>();
}

// -- parameters and memory

Gathered Engine::gathered(const std::vector<at::Tensor>& parameters, std::optional<int> modifier_rank) {
  const int modifier = modifier_rank.value_or(-1);
  if (modifier_rank && (modifier < 0 || modifier >= world_size())) {
    throw UsageError(fmt::format("gathered: there is no rank {} to take values from; ranks are 0 to {}", modifier,
                                 world_size() - 1));
  }
  return Gathered(*this, impl_->core->gather(parameters), modifier);
}

void Engine::print_memory_table() const {
  const std::string table = memory_report().table();
  if (global_rank() != 0) return;
  std::fputs(table.c_str(), stdout);
  std::fflush(stdout);
}

void Engine::empty_partition_cache() { impl_->core->trim_memory(); }

// -- ranks, batch sizes

int Engine::global_rank() const { return impl_->world.rank; }
int Engine::local_rank() const { return impl_->world.local_rank; }
int Engine::world_size() const { return impl_->world.size; }
at::Device Engine::device() const { return impl_->device; }

std::int64_t Engine::train_batch_size() const {
  return train_micro_batch_size_per_gpu() * gradient_accumulation_steps() * world_size();
}
std::int64_t Engine::train_micro_batch_size_per_gpu() const { return impl_->micro_batch_size; }
std::int64_t Engine::gradient_accumulation_steps() const { return impl_->accumulation_steps; }
std::tuple<std::int64_t, std::int64_t, std::int64_t> Engine::get_batch_info() const {
  return {train_batch_size(), train_micro_batch_size_per_gpu(), gradient_accumulation_steps()};
}

void Engine::set_train_batch_size(std::int64_t train_batch_size) {
  const std::int64_t per_step = train_micro_batch_size_per_gpu() * world_size();
  if (train_batch_size <= 0 || train_batch_size % per_step != 0) {
    throw ConfigError(fmt::format("train_batch_size {} is not a positive multiple of micro batch {} * {} ranks = {}",
                                  train_batch_size, train_micro_batch_size_per_gpu(), world_size(), per_step));
  }
  impl_->core->set_accumulation_steps(train_batch_size / per_step);
  impl_->accumulation_steps = train_batch_size / per_step;
}

void Engine::set_train_micro_batch_size(std::int64_t micro_batch_size) {
  if (micro_batch_size <= 0)
    throw ConfigError(fmt::format("expected a positive micro batch size, got {}", micro_batch_size));
  impl_->micro_batch_size = micro_batch_size;
}

// -- optimizer, schedule, precision

bool Engine::has_optimizer() const { return impl_->has_optimizer; }

std::vector<double> Engine::get_lr() const {
  std::vector<double> out;
  for (const auto& group : impl_->core->groups()) out.push_back(group.lr);
  return out;
}

void Engine::set_lr(double lr) { set_lr(std::vector<double>(impl_->core->groups().size(), lr)); }

void Engine::set_lr(const std::vector<double>& lrs) {
  auto& groups = impl_->core->groups();
  if (lrs.size() != groups.size()) {
    throw UsageError(fmt::format("set_lr got {} rates for {} parameter groups", lrs.size(), groups.size()));
  }
  for (std::size_t i = 0; i < lrs.size(); ++i) groups[i].lr = lrs[i];
}

std::vector<std::pair<double, double>> Engine::get_mom() const {
  std::vector<std::pair<double, double>> out;
  for (const auto& group : impl_->core->groups()) out.emplace_back(group.beta1, group.beta2);
  return out;
}

std::int64_t Engine::last_batch_iteration() const { return impl_->core->schedule_iteration(); }
void Engine::set_last_batch_iteration(std::int64_t iteration) { impl_->core->set_schedule_iteration(iteration); }
double Engine::gradient_clipping() const { return impl_->config.gradients.clipping; }
bool Engine::fp16_enabled() const { return impl_->config.precision == config::Precision::kFp16; }
bool Engine::bfloat16_enabled() const { return impl_->config.precision == config::Precision::kBf16; }
double Engine::loss_scale() const { return impl_->core->loss_scale(); }
bool Engine::dynamic_loss_scale() const { return fp16_enabled() && impl_->config.loss_scale.dynamic; }
bool Engine::zero_optimization() const { return impl_->config.zero.stage > 0; }
int Engine::zero_optimization_stage() const { return impl_->config.zero.stage; }

// -- progress

std::int64_t Engine::global_steps() const { return impl_->core->global_steps(); }
std::int64_t Engine::global_samples() const { return global_steps() * train_batch_size(); }
std::int64_t Engine::micro_steps() const { return impl_->core->micro_steps(); }
std::int64_t Engine::skipped_steps() const { return impl_->core->skipped_steps(); }
std::optional<std::int64_t> Engine::steps_per_print() const { return impl_->config.steps_per_print; }
const std::string& Engine::config() const { return impl_->config.effective_json; }

}  // namespace zeropage
