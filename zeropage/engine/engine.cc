#include "zeropage/engine/engine.h"

#include <c10/core/GradMode.h>
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "zeropage/base/error.h"
#include "zeropage/base/log.h"
#include "zeropage/engine/engine_impl.h"
#include "zeropage/paging/device_wait.h"
#include "zeropage/reduce/coded_reductions.h"

namespace zeropage::engine {

Engine::Impl::Impl(std::vector<ParameterInput> inputs, std::vector<config::OptimizerParams> groups,
                   const config::Config& config, std::shared_ptr<comm::Communicator> communicator, c10::Device device,
                   std::shared_ptr<comm::Communicator> reductions, std::shared_ptr<comm::Communicator> saves)
    : config_(config),
      recorder_(config_.observation, communicator->job().rank()),
      communicator_(recorder_.observed(std::move(communicator))),
      device_(device),
      ledger_(std::make_shared<Ledger>()),
      groups_(std::move(groups)),
      state_(inputs, config_, communicator_, device_, ledger_),
      steps_(inputs.size()),
      window_(config_.batch.accumulation_steps, std::max<std::int64_t>(1, config_.batch.micro_batch_size),
              communicator_->job().size(), config_.batch.counted) {
  require_one_pass(config_, device_);
  auto sums = reductions ? recorder_.observed(std::move(reductions)) : communicator_;
  if (config_.zero.quantized_gradients) sums = reduce::code_reductions(std::move(sums), device_, ledger_);
  reducer_ = std::make_unique<reduce::Reducer>(state_.layout(), state_.tensors(), std::move(sums), device_, ledger_,
                                               reduce_policy(config_, state_, job().rank(), device_, ledger_));
  reducer_->on_pages_begin([this](const std::vector<int>& pages) { begin_training(pages); });
  reducer_->on_left_gradients([this] { return program_factor(); });
  if (timeline() != nullptr) state_.observe(recorder_.timeline(), reducer_->disk());
  offloader_ = std::make_unique<StateOffloader>(state_, *reducer_, *communicator_);
  update_pass_ = std::make_unique<UpdatePass>(state_, *reducer_, device_, optimizer_host(config_, device_), ledger_);
  const auto undo_log = undo_log_bytes(config_, state_.counts(), formula(), device_);
  speculation_ = std::make_unique<Speculation>(config_, state_, *reducer_, *update_pass_, device_, undo_log, ledger_);
  gradients_ = std::make_unique<GradientViews>(
      state_, *reducer_, *communicator_, device_, ledger_,
      saturating_mul(config_.zero.max_live_numel, element_bytes(state_.compute_dtype())));
  reducer_->before_gradients([this] { before_gradient(); });
  values_ = std::make_unique<ParameterValues>(config_, state_, *reducer_, *speculation_, *gradients_, *communicator_,
                                              device_, steps_);
  if (scales_losses(config_)) scaler_ = std::make_unique<optim::LossScaler>(config_.loss_scale);
  if (config_.schedule.kind != config::ScheduleKind::kNone) {
    schedule_ = std::make_unique<optim::LrSchedule>(config_.schedule, rates_of(groups_));
    take_scheduled();
    const auto warning = optim::schedule_warning(config_.schedule);
    if (warning && job().rank() == 0) log_warn(*warning);
  }
  if (config_.zero.second_shard_ranks > 1 && communicator_->nearby_size() == 1 && job().rank() == 0) {
    log_info(
        "zero_optimization.zero_hpz_partition_size has no effect here: ranks read each other's shards in memory that "
        "they share, or there is one rank");
  }
  if (config_.zeropage.async_save) {
    if (saves == nullptr) throw UsageError("zeropage.async_save needs a separate communicator for saves; got none");
    background_save_ = std::make_unique<BackgroundSave>(checkpoint::system_files(), std::move(saves), ledger_);
  }
  if (config_.zeropage.observe_functions && state_.anything_paged())
    observer_ = std::make_unique<paging::FunctionObserver>();
  paging::wait_for_device(device_, *communicator_, "the device, before memory is returned to the system");
  memory::release_cached_memory(device_);  // from the original parameters, and from building the pages
}

void Engine::Impl::wait_until_idle() noexcept {
  try {
    if (speculation_) speculation_->close();
  } catch (const std::exception& error) {
    log_warn(fmt::format("an engine ends while its update is still running: {}", error.what()));
  }
  // Copies from and to page-locked memory may be in progress, which only this engine knows.
  paging::come_to_rest(device_, *communicator_, "an engine");
}

void Engine::Impl::require_whole_state(std::string_view caller) const {
  if (parameters_only_) {
    throw UsageError(fmt::format("{}() was called on an engine that has ended; call initialize() again", caller));
  }
  offloader_->require_resident(caller);
  if (failure_.empty()) return;
  throw UsageError(fmt::format("{}() cannot continue: {}", caller, failure_));
}

Engine::Engine(std::vector<ParameterInput> parameters, std::vector<config::OptimizerParams> groups,
               const config::Config& config, std::shared_ptr<comm::Communicator> communicator, c10::Device device,
               std::shared_ptr<comm::Communicator> reductions, std::shared_ptr<comm::Communicator> saves)
    : impl_(std::make_unique<Impl>(std::move(parameters), std::move(groups), config, std::move(communicator), device,
                                   std::move(reductions), std::move(saves))) {}
Engine::~Engine() {
  impl_->wait_until_idle();
  impl_->state_.leave_parameters();
}

void Engine::before_forward() {
  impl_->require_whole_state("forward");
  impl_->recorder_.begin_forward();
  impl_->state_.adopt_replaced_data();
  if (c10::GradMode::is_enabled()) {
    impl_->reducer_->begin_forward();
    impl_->forward_begun_ = true;
  }
  // Without an optimizer no step ends the pass, so each forward is one.
  if (impl_->groups_.empty()) impl_->state_.pager().end_pass();
}
at::Tensor Engine::scale(const at::Tensor& loss) { return impl_->scale_loss(loss); }
at::Tensor Engine::backward(const at::Tensor& loss, const BackwardOptions& options) {
  return impl_->backward(loss, options);
}
bool Engine::step(const ClientUpdate& update) {
  return impl_->recorder_.step([&] { return impl_->step(update); });
}
std::vector<OwnedSegment> Engine::owned_segments() const { return engine::owned_segments(impl_->state_); }
void Engine::zero_grad() { impl_->zero_grad(); }
void Engine::wait_for_device(std::string_view what, bool every_stream) const {
  auto& communicator = *impl_->communicator_;
  every_stream ? paging::wait_for_device(impl_->device_, communicator, what)
               : paging::wait_for_stream(impl_->device_, communicator, what);
}
void Engine::wait_for_updates() { impl_->speculation_->wait(); }
bool Engine::is_accumulation_boundary() const { return impl_->window_.at_boundary(); }
void Engine::set_accumulation_boundary(std::optional<bool> boundary) { impl_->window_.force(boundary); }
void Engine::set_accumulation_steps(std::int64_t steps) { impl_->window_.set_steps(steps); }
std::int64_t Engine::accumulation_steps() const { return impl_->window_.steps(); }
bool Engine::window_is_new() const { return impl_->window_.is_new(); }
std::int64_t Engine::train_batch_size() const { return impl_->window_.samples_of_update(); }
void Engine::set_train_batch_size(std::int64_t samples) { impl_->window_.set_samples_of_update(samples); }
std::int64_t Engine::micro_batch_size() const { return impl_->window_.micro_batch_size(); }
void Engine::set_micro_batch_size(std::int64_t samples) { impl_->window_.set_micro_batch_size(samples); }
std::vector<config::OptimizerParams>& Engine::groups() { return impl_->groups_; }
std::vector<double> Engine::scheduled_lrs() const {
  return impl_->schedule_ ? impl_->schedule_->lrs() : std::vector<double>{};
}
std::int64_t Engine::schedule_iteration() const {
  return impl_->schedule_ ? impl_->schedule_->last_batch_iteration() : -1;
}
void Engine::set_schedule_iteration(std::int64_t iteration) {
  if (!impl_->schedule_) throw UsageError("there is no schedule in the configuration");
  impl_->schedule_->set_last_batch_iteration(iteration);
  impl_->take_scheduled();
}
double Engine::loss_scale() const { return impl_->scale(); }
std::int64_t Engine::global_steps() const { return impl_->global_steps_; }
std::int64_t Engine::skipped_steps() const { return impl_->skipped_steps_; }
std::int64_t Engine::micro_steps() const { return impl_->window_.micro_steps(); }
std::int64_t Engine::global_samples() const { return impl_->window_.samples(); }
const StepResult& Engine::last_step() const { return impl_->last_; }

void Engine::offload_states(const StateKinds& which, bool pin_memory) {
  // A backward that was given up may still write into what is freed, on any stream.
  paging::wait_for_device(impl_->device_, *impl_->communicator_, "the device, before its memory is freed");
  impl_->offloader_->move_out(which, {c10::kCPU, Tier::kHost, pin_memory && !impl_->device_.is_cpu()});
  memory::release_cached_memory(impl_->device_);
}
void Engine::reload_states() { impl_->offloader_->move_back(); }

void Engine::trim_memory() {
  impl_->state_.pager().trim(/*evict_all=*/true);
  impl_->reducer_->trim();
}

const std::shared_ptr<Ledger>& Engine::ledger() const { return impl_->ledger_; }
paging::PagerStats Engine::pager_stats() const { return impl_->state_.pager().stats(); }
io::MoverStats Engine::disk_traffic() const { return impl_->state_.disk_traffic(impl_->reducer_->disk()); }
std::vector<paging::PageCounts> Engine::page_counts() const { return impl_->state_.pager().page_counts(); }
std::shared_ptr<const Timeline> Engine::timeline() const { return impl_->recorder_.timeline(); }
formula::PlacedBytes Engine::formula_bytes() const { return impl_->state_.formula_bytes(impl_->formula()); }
formula::StateBytes Engine::formula_bytes_at_stage(int stage) const {
  auto options = impl_->formula();
  options.stage = stage;
  return impl_->state_.formula_bytes_on_device(options);
}
const comm::Communicator& Engine::communicator() const { return *impl_->communicator_; }
std::int64_t Engine::trainable_numel() const {
  std::int64_t numel = 0;
  for (const auto& parameter : impl_->state_.layout()->parameters()) numel += parameter.trainable ? parameter.numel : 0;
  return numel;
}
std::int64_t Engine::page_count() const { return static_cast<std::int64_t>(impl_->state_.layout()->pages().size()); }

}  // namespace zeropage::engine
