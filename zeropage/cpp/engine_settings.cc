// Getters of the engine for its configuration and its progress.
#include <ATen/ATen.h>
#include <fmt/format.h>

#include "zeropage/base/error.h"
#include "zeropage/config/optimizers.h"
#include "zeropage/cpp/engine_impl.h"
#include "zeropage/session/data_types.h"

namespace zeropage {
namespace {

using config::ScheduleKind;

std::optional<std::string> name_of(ScheduleKind kind) {
  switch (kind) {
    case ScheduleKind::kNone: break;
    case ScheduleKind::kWarmup: return "WarmupLR";
    case ScheduleKind::kWarmupDecay: return "WarmupDecayLR";
    case ScheduleKind::kWarmupCosine: return "WarmupCosineLR";
    case ScheduleKind::kOneCycle: return "OneCycle";
    case ScheduleKind::kLrRangeTest: return "LRRangeTest";
  }
  return std::nullopt;
}

}  // namespace

// -- ranks, batch sizes

int Engine::global_rank() const { return impl_->world.rank; }
int Engine::local_rank() const { return impl_->world.local_rank; }
int Engine::world_size() const { return impl_->world.size; }
int Engine::dp_world_size() const { return impl_->world.size; }
int Engine::mp_world_size() const { return 1; }
at::Device Engine::device() const { return impl_->device; }

void Engine::barrier() { impl_->communicator->job().barrier({"Engine::barrier"}); }

double Engine::mean_over_ranks(double value) {
  return mean_over_ranks(at::scalar_tensor(value, at::kDouble)).item<double>();
}

at::Tensor Engine::mean_over_ranks(const at::Tensor& values) {
  if (!values.device().is_cpu()) impl_->core->wait_for_device("values for their mean over the ranks");
  const at::Tensor mine = values.detach().to(at::kCPU, at::kDouble).contiguous();
  const std::string_view bytes(static_cast<const char*>(mine.const_data_ptr()), mine.nbytes());
  std::string all = comm::all_gather_small(impl_->communicator->job(), bytes, {"Engine::mean_over_ranks"});
  std::vector<std::int64_t> sizes = mine.sizes().vec();
  sizes.insert(sizes.begin(), world_size());
  return at::from_blob(all.data(), sizes, at::kDouble).mean(0);
}

std::int64_t Engine::train_batch_size() const { return impl_->core->train_batch_size(); }
std::int64_t Engine::train_micro_batch_size_per_gpu() const { return impl_->core->micro_batch_size(); }
std::int64_t Engine::gradient_accumulation_steps() const { return impl_->core->accumulation_steps(); }
std::tuple<std::int64_t, std::int64_t, std::int64_t> Engine::get_batch_info() const {
  return {train_batch_size(), train_micro_batch_size_per_gpu(), gradient_accumulation_steps()};
}

void Engine::set_train_batch_size(std::int64_t train_batch_size) {
  impl_->core->set_train_batch_size(train_batch_size);
}
void Engine::set_train_micro_batch_size(std::int64_t micro_batch_size) {
  impl_->core->set_micro_batch_size(micro_batch_size);
}

// -- optimizer, schedule, precision

bool Engine::has_optimizer() const { return impl_->has_optimizer; }
std::optional<std::string> Engine::optimizer_name() const {
  if (impl_->client) return impl_->client->name();
  return has_optimizer() ? std::optional(config::optimizer_name(impl_->config.optimizer.kind)) : std::nullopt;
}
std::optional<std::string> Engine::scheduler_name() const { return name_of(impl_->config.schedule.kind); }

std::vector<double> Engine::get_lr() const {
  std::vector<double> out;
  for (const auto& group : impl_->client ? impl_->client->engine_groups() : impl_->core->groups())
    out.push_back(group.lr);
  return out;
}

void Engine::set_lr(double lr) { set_lr(std::vector<double>(impl_->core->groups().size(), lr)); }

void Engine::set_lr(const std::vector<double>& lrs) {
  auto& groups = impl_->core->groups();
  if (lrs.size() != groups.size()) {
    throw UsageError(fmt::format("set_lr got {} rates for {} parameter groups", lrs.size(), groups.size()));
  }
  for (std::size_t i = 0; i < lrs.size(); ++i) groups[i].lr = lrs[i];
  if (impl_->client) impl_->client->set_rates(groups);
}

std::vector<std::pair<double, double>> Engine::get_mom() const {
  if (impl_->client) return impl_->client->momenta();
  std::vector<std::pair<double, double>> out;
  const auto* entry = config::find_optimizer(impl_->config.optimizer.kind);
  for (const auto& group : impl_->core->groups()) {
    const bool has_betas = entry != nullptr && entry->find("betas") != nullptr;
    out.emplace_back(has_betas ? group.beta1 : group.momentum, has_betas ? group.beta2 : 0.0);
  }
  return out;
}

std::int64_t Engine::last_batch_iteration() const { return impl_->core->schedule_iteration(); }
void Engine::set_last_batch_iteration(std::int64_t iteration) { impl_->core->set_schedule_iteration(iteration); }
double Engine::gradient_clipping() const { return impl_->config.gradients.clipping; }
double Engine::gradient_predivide_factor() const { return impl_->config.gradients.predivide_factor; }
bool Engine::prescale_gradients() const { return impl_->config.gradients.prescale; }
bool Engine::fp16_enabled() const { return impl_->config.precision == config::Precision::kFp16; }
bool Engine::bfloat16_enabled() const { return impl_->config.precision == config::Precision::kBf16; }
bool Engine::fp16_auto_cast() const { return impl_->config.cast_inputs; }
std::optional<at::ScalarType> Engine::autocast_dtype() const { return session::data_types(impl_->config).autocast; }
std::pair<at::ScalarType, at::ScalarType> Engine::get_data_types() const {
  const auto types = session::data_types(impl_->config);
  return {types.parameters, types.accumulation};
}
at::ScalarType Engine::communication_data_type() const { return session::data_types(impl_->config).communication; }
double Engine::loss_scale() const { return impl_->core->loss_scale(); }
bool Engine::dynamic_loss_scale() const { return fp16_enabled() && impl_->config.loss_scale.dynamic; }
bool Engine::zero_optimization() const { return impl_->config.zero.stage > 0; }
int Engine::zero_optimization_stage() const { return impl_->config.zero.stage; }
bool Engine::zero_gather_16bit_weights_on_model_save() const {
  return impl_->config.zero.gather_16bit_weights_on_model_save;
}

// -- progress

std::int64_t Engine::global_steps() const { return impl_->core->global_steps(); }
std::int64_t Engine::global_samples() const { return impl_->core->global_samples(); }
std::int64_t Engine::micro_steps() const { return impl_->core->micro_steps(); }
std::int64_t Engine::skipped_steps() const { return impl_->core->skipped_steps(); }
std::optional<std::int64_t> Engine::steps_per_print() const { return impl_->config.steps_per_print; }
bool Engine::dump_state() const { return impl_->config.dump_state; }
const std::string& Engine::config() const { return impl_->config.effective_json; }

}  // namespace zeropage
