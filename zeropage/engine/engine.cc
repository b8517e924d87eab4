#include "zeropage/engine/engine.h"

#include <ATen/ops/mul.h>
#include <fmt/format.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <map>
#include <set>
#include <utility>

#include "zeropage/base/error.h"
#include "zeropage/base/log.h"
#include "zeropage/engine/agreement.h"
#include "zeropage/engine/background_save.h"
#include "zeropage/engine/checkpoint.h"
#include "zeropage/engine/find_step.h"
#include "zeropage/engine/lamb_update.h"
#include "zeropage/engine/model_state.h"
#include "zeropage/engine/moved_states.h"
#include "zeropage/engine/reduce_policy.h"
#include "zeropage/engine/scheduled_groups.h"
#include "zeropage/engine/speculation.h"
#include "zeropage/engine/update.h"
#include "zeropage/engine/watch.h"
#include "zeropage/optim/loss_scale.h"
#include "zeropage/optim/norm.h"
#include "zeropage/paging/function_observer.h"
#include "zeropage/reduce/reducer.h"

namespace zeropage::engine {
class Engine::Impl {
 public:
  Impl(std::vector<ParameterInput> inputs, std::vector<config::OptimizerParams> groups, const config::Config& config,
       std::shared_ptr<comm::Communicator> communicator, c10::Device device,
       std::shared_ptr<comm::Communicator> reductions, std::shared_ptr<comm::Communicator> saves)
      : config_(config),
        watch_(config_.observation, communicator->rank()),
        communicator_(watch_.observed(std::move(communicator))),
        device_(device),
        ledger_(std::make_shared<Ledger>()),
        groups_(std::move(groups)),
        state_(inputs, config_, communicator_, device_, ledger_),
        steps_(inputs.size()),
        accumulation_steps_(config_.batch.accumulation_steps) {
    require_one_pass(config_, device_);
    for (const auto& parameter : state_.layout()->parameters()) {
      if (parameter.trainable) trainable_numel_ += parameter.numel;
    }
    reducer_ = std::make_unique<reduce::Reducer>(
        state_.layout(), state_.tensors(), reductions ? watch_.observed(std::move(reductions)) : communicator_, device_,
        ledger_, reduce_policy(config_, state_, communicator_->rank(), device_, ledger_));
    if (timeline() != nullptr) state_.observe(watch_.timeline(), reducer_->disk());
    moved_ = std::make_unique<MovedStates>(state_, *reducer_, *communicator_);
    transit_ = std::make_unique<Transit>(state_, *reducer_, device_, optimizer_host(config_, device_), ledger_);
    const auto undo_log = undo_log_bytes(config_, state_.counts(), formula(), device_);
    speculation_ = std::make_unique<Speculation>(config_, state_, *reducer_, *transit_, device_, undo_log, ledger_);
    if (config_.precision == config::Precision::kFp16 || config_.autocast_dtype == DType::kFloat16)
      scaler_ = std::make_unique<optim::LossScaler>(config_.loss_scale);
    if (config_.schedule.kind != config::ScheduleKind::kNone) {
      schedule_ = std::make_unique<optim::LrSchedule>(config_.schedule, rates_of(groups_));
      take_scheduled();
      const auto warning = optim::schedule_warning(config_.schedule);
      if (warning && communicator_->rank() == 0) log_warn(*warning);
    }
    if (config_.own.async_save) {
      if (saves == nullptr) throw UsageError("zeropage.async_save needs a communicator of its own for saves; got none");
      background_save_ = std::make_unique<BackgroundSave>(checkpoint::system_files(), std::move(saves), ledger_);
    }
    if (config_.own.observe_functions && state_.anything_paged())
      observer_ = std::make_unique<paging::FunctionObserver>();
  }

  at::Tensor backward(const at::Tensor& loss, const BackwardOptions& options);
  bool step(const CallerUpdate& caller);
  void release(std::int64_t ticket, int modifier_rank);

  bool at_boundary() const { return boundary_.value_or((micro_steps_ + 1) % accumulation_steps_ == 0); }
  double scale() const { return scaler_ ? scaler_->scale() : 1.0; }
  double divisor() const { return gradient_divisor(config_, communicator_->size(), scale()); }
  void take_scheduled() { engine::take_scheduled(*schedule_, config_.optimizer.kind, groups_); }
  CheckpointedState checkpointed() { return {state_, steps_, *communicator_, config_}; }
  plan::StateOptions formula() const { return plan::StateOptions::from_config(config_, communicator_->size()); }
  checkpoint::TrainingState training() const;
  void resume(const checkpoint::TrainingState& training, const LoadOptions& options);
  Timeline* timeline() const { return watch_.timeline().get(); }

  config::Config config_;
  Watch watch_;
  std::shared_ptr<comm::Communicator> communicator_;
  c10::Device device_;
  std::shared_ptr<Ledger> ledger_;
  std::vector<config::OptimizerParams> groups_;
  ModelState state_;
  std::unique_ptr<reduce::Reducer> reducer_;
  std::unique_ptr<Transit> transit_;
  std::unique_ptr<Speculation> speculation_;
  std::unique_ptr<MovedStates> moved_;
  std::unique_ptr<optim::LossScaler> scaler_;
  std::unique_ptr<optim::LrSchedule> schedule_;
  std::unique_ptr<paging::FunctionObserver> observer_;
  std::vector<std::int64_t> steps_;  // per parameter: updates so far
  std::int64_t accumulation_steps_;
  std::optional<bool> boundary_;
  std::int64_t trainable_numel_ = 0;
  std::int64_t micro_steps_ = 0;
  std::int64_t global_steps_ = 0;
  std::int64_t skipped_steps_ = 0;
  std::int64_t consecutive_skips_ = 0;
  bool backward_done_ = false;
  StepResult last_;
  std::string failure_;  // of an update that began and did not end; empty while the state is whole
  std::map<std::int64_t, std::set<int>> tickets_;
  std::int64_t next_ticket_ = 1;
  std::unique_ptr<BackgroundSave> background_save_;  // null: saves are finished when they return
  std::atomic<bool> stop_requested_{false};
  StepFlags flags_;  // what the last verdict said

  /// Errors: UsageError once an update has failed in the middle. Everything that uses or changes the state comes by here.
  void require_whole_state(std::string_view caller) const;

 private:
  void update(const Verdict& verdict, float gradient_scale, const CallerUpdate& caller);
  Verdict agree();
  void apply(const Verdict& verdict, float gradient_scale, const CallerUpdate& caller);
  void count_skip(const Verdict& verdict);
};

void Engine::Impl::require_whole_state(std::string_view caller) const {
  moved_->require_none(caller);
  if (failure_.empty()) return;
  throw UsageError(fmt::format("{}() cannot go on: {}", caller, failure_));
}

at::Tensor Engine::Impl::backward(const at::Tensor& loss, const BackwardOptions& options) {
  require_whole_state("backward");
  watch_.end_forward();
  const Span span(timeline(), SpanKind::kBackward, "backward");
  if (!loss.defined() || loss.numel() != 1) {
    throw UsageError(fmt::format("backward() expects a loss with one element, got {}; reduce it first (loss.mean())",
                                 loss.defined() ? fmt::format("{} elements", loss.numel()) : "nothing"));
  }
  if (!loss.requires_grad()) {
    throw UsageError(
        "backward() got a loss that does not depend on any parameter that requires a gradient; was the forward run "
        "under no_grad or inference_mode, or through .detach()?");
  }
  const double parts = options.scale_by_accumulation ? static_cast<double>(accumulation_steps_) : 1.0;
  at::Tensor divided = parts == 1.0 ? loss : at::mul(loss.to(at::kFloat), 1.0 / parts);
  const at::Tensor scaled = scale() == 1.0 ? divided : at::mul(divided.to(at::kFloat), scale());
  if (at_boundary()) speculation_->expect(divisor(), groups_, steps_);
  reducer_->begin_backward(at_boundary());
  torch::autograd::backward({scaled}, {}, options.retain_graph);
  reducer_->end_backward();
  backward_done_ = true;
  return divided.detach();
}

Verdict Engine::Impl::agree() {
  reducer_->finish();
  LocalVerdict mine;
  mine.received = reducer_->received();
  mine.flags = {background_save_ && background_save_->failed(), stop_requested_};
  mine.trace_hash = state_.pager().end_pass();
  const auto sum = sum_gradients(state_, *reducer_, communicator_->rank());
  mine.sum_of_squares = sum.sum_of_squares;
  mine.overflow_parameter = sum.overflow_parameter;
  last_ = StepResult{};
  last_.pages_ahead = speculation_->close();
  Verdict verdict;
  try {
    verdict = agree_on_step(*communicator_, mine);
  } catch (...) {
    speculation_->undo();
    throw;
  }
  flags_ = verdict.flags;
  state_.pager().set_trace_agreed(verdict.traces_agree);
  return verdict;
}

bool Engine::Impl::step(const CallerUpdate& caller) {
  require_whole_state("step");
  if (groups_.empty()) {
    throw UsageError(
        "step() needs an optimizer: name one in the configuration (\"optimizer\": {\"type\": \"AdamW\", ...}) or hand "
        "one to initialize()");
  }
  if (!backward_done_ && !reducer_->anything_arrived()) {
    throw UsageError("step() was called before backward(): there are no gradients; call engine.backward(loss) first");
  }
  require_states(config_.optimizer, groups_);
  const bool boundary = at_boundary();
  if (boundary && config_.optimizer.kind == config::OptimizerKind::kTorch && !caller) {
    throw UsageError("step() needs the optimizer that the configuration names, which only the Python engine has");
  }
  ++micro_steps_;
  backward_done_ = false;
  if (!boundary) return false;

  state_.absorb_replaced();
  const Verdict verdict = agree();
  last_.gradient_norm = std::sqrt(verdict.sum_of_squares) / divisor();
  const bool checked =
      scaler_ != nullptr || (config_.precision == config::Precision::kBf16 && config_.gradients.check_overflow);
  const bool overflow = checked && !std::isfinite(verdict.sum_of_squares);
  if (overflow) {
    speculation_->undo();
    last_.undone = last_.pages_ahead > 0;
    state_.take_user_writes();
    count_skip(verdict);
  } else {
    last_.clip_coefficient = optim::clip_coefficient(last_.gradient_norm, config_.gradients.clipping);
    update(verdict, static_cast<float>(last_.clip_coefficient / divisor()), caller);
    last_.applied = true;
    consecutive_skips_ = 0;
  }
  ++global_steps_;
  reducer_->reset();
  paging::FunctionObserver::forget(*state_.pager().handle());
  if (observer_ && !paging::FunctionObserver::saw_function(*state_.pager().handle())) observer_.reset();
  if (scaler_) scaler_->update(overflow, last_.overflow_parameter);
  if (!overflow && schedule_) {
    schedule_->step();
    take_scheduled();
  }
  return true;
}

/// From the first change to the last. Up to here an error leaves every rank with the state it had; in between, ranks have come
/// different parts of the way.
void Engine::Impl::update(const Verdict& verdict, float gradient_scale, const CallerUpdate& caller) {
  const auto fail = [&](const std::exception& error) {
    failure_ = fmt::format(
        "the update of step {} ended in the middle on rank {}, and the state of this engine is not consistent any "
        "more; restart from a checkpoint. The cause: {}",
        global_steps_ + 1, communicator_->rank(), error.what());
    communicator_->abort(failure_);
    state_.abandon_step();
    return failure_;
  };
  try {
    state_.take_user_writes();
    apply(verdict, gradient_scale, caller);
  } catch (const PeerError& error) {
    throw PeerError(fail(error));
  } catch (const TimeoutError& error) {
    throw TimeoutError(fail(error));
  } catch (const IoError& error) {
    throw IoError(fail(error));
  } catch (const std::exception& error) {
    throw Error(fail(error));
  }
}

void Engine::Impl::apply(const Verdict& verdict, float gradient_scale, const CallerUpdate& caller) {
  const Span span(timeline(), SpanKind::kUpdate, "update");
  for (std::size_t i = 0; i < steps_.size(); ++i) {
    if (!verdict.received[i]) continue;
    ++steps_[i];
    // As an update in place does: a graph from before this step now raises torch's error instead of using new values.
    state_.tensors()[i].unsafeGetTensorImpl()->bump_version();
  }
  auto updated = updated_pages(*state_.layout(), verdict.received);
  state_.pager().drop_stale(updated);
  UpdateInputs inputs{config_.optimizer.kind, groups_, steps_, verdict.received, gradient_scale, caller};
  const bool owned_in_parts = placement_of_stage(config_.zero.stage).shard_optimizer && communicator_->size() > 1;
  std::vector<comm::WorkPtr> gathers;
  communicator_->set_checking(false);  // the verdict, the same everywhere, says which gathers come
  if (inputs.kind == config::OptimizerKind::kLamb) {
    inputs.lamb_ratios = lamb_ratios(state_, *reducer_, *transit_, updated, inputs, *communicator_);
  }
  last_.undone = speculation_->settle(inputs) < last_.pages_ahead;
  update_pages(state_, *reducer_, *transit_, std::move(updated), inputs, *speculation_, [&](int page) {
    if (state_.pager().paged(page)) {
      state_.pager().publish(page);
    } else if (owned_in_parts) {
      gathers.push_back(communicator_->all_gather(state_.owned(page).parameter, state_.whole_page(page),
                                                  state_.layout()->pages()[page].shard_bytes(),
                                                  comm::Tag{"updated parameters", page}));
    }
  });
  for (auto& gather : gathers) gather->wait();
  communicator_->set_checking(true);
  state_.commit_step();
  state_.pager().refresh_pinned();
}

void Engine::Impl::count_skip(const Verdict& verdict) {
  ++skipped_steps_;
  ++consecutive_skips_;
  if (verdict.overflow_parameter >= 0) {
    last_.overflow_parameter = state_.layout()->parameters()[verdict.overflow_parameter].name;
  }
  if (config_.own.max_consecutive_skips > 0 && consecutive_skips_ >= config_.own.max_consecutive_skips) {
    throw Error(fmt::format(
        "{} steps in a row were skipped because gradients were not finite, steps {} to {}, in the last one first in "
        "parameter '{}'; lower the learning rate or look for NaN in the data (zeropage.max_consecutive_skips)",
        consecutive_skips_, global_steps_ + 2 - consecutive_skips_, global_steps_ + 1, last_.overflow_parameter));
  }
}

checkpoint::TrainingState Engine::Impl::training() const {
  checkpoint::TrainingState training{global_steps_, skipped_steps_, consecutive_skips_, micro_steps_, {}, {}};
  if (schedule_) training.schedule_iteration = schedule_->last_batch_iteration();
  if (scaler_) training.loss_scale = scaler_->state();
  return training;
}

void Engine::Impl::resume(const checkpoint::TrainingState& training, const LoadOptions& options) {
  reducer_->reset();
  backward_done_ = false;
  if (options.module_only) return;
  last_ = StepResult{};
  global_steps_ = training.global_steps;
  skipped_steps_ = training.skipped_steps;
  consecutive_skips_ = training.consecutive_skips;
  // With another number of accumulation steps the next micro step is again the first of an update.
  const bool same_count = training.micro_steps % accumulation_steps_ == 0;
  micro_steps_ = same_count ? training.micro_steps : training.global_steps * accumulation_steps_;
  if (options.optimizer_states && scaler_ && training.loss_scale) scaler_->set_state(*training.loss_scale);
  if (options.schedule && schedule_ && training.schedule_iteration) {
    schedule_->set_last_batch_iteration(*training.schedule_iteration);
    take_scheduled();
  }
}

void Engine::Impl::release(std::int64_t ticket, int modifier_rank) {
  if (modifier_rank >= 0) require_whole_state("release");
  auto found = tickets_.find(ticket);
  if (found == tickets_.end())
    throw UsageError(fmt::format("gather ticket {} is not open; release each ticket once", ticket));
  const auto pages = std::move(found->second);
  tickets_.erase(found);
  auto& pager = state_.pager();
  for (int page : pages) {
    if (modifier_rank >= 0) {
      std::byte* data = pager.paged(page) ? pager.frame(page) : state_.whole_page(page);
      communicator_
          ->broadcast(data, state_.layout()->pages()[page].padded_bytes(), modifier_rank,
                      comm::Tag{"parameters modified by one rank", page})
          ->wait();
      pager.paged(page) ? pager.mark_dirty(page) : pager.note_write(page);
    }
    if (pager.paged(page)) pager.unpin(page);
  }
}

Engine::Engine(std::vector<ParameterInput> parameters, std::vector<config::OptimizerParams> groups,
               const config::Config& config, std::shared_ptr<comm::Communicator> communicator, c10::Device device,
               std::shared_ptr<comm::Communicator> reductions, std::shared_ptr<comm::Communicator> saves)
    : impl_(std::make_unique<Impl>(std::move(parameters), std::move(groups), config, std::move(communicator), device,
                                   std::move(reductions), std::move(saves))) {}
Engine::~Engine() = default;

void Engine::before_forward() {
  impl_->require_whole_state("forward");
  impl_->watch_.begin_forward();
  impl_->state_.absorb_replaced();
  // Without an optimizer no step ends the pass: each forward is one.
  if (impl_->groups_.empty()) impl_->state_.pager().end_pass();
}
at::Tensor Engine::backward(const at::Tensor& loss, const BackwardOptions& options) {
  return impl_->backward(loss, options);
}
bool Engine::step(const CallerUpdate& update) {
  return impl_->watch_.step([&] { return impl_->step(update); });
}
std::vector<OwnedSegment> Engine::owned_segments() const { return engine::owned_segments(impl_->state_); }
void Engine::zero_grad() { impl_->reducer_->reset(); }
void Engine::wait_for_updates() { impl_->speculation_->wait(); }
bool Engine::is_accumulation_boundary() const { return impl_->at_boundary(); }
void Engine::set_accumulation_boundary(std::optional<bool> boundary) { impl_->boundary_ = boundary; }
void Engine::set_accumulation_steps(std::int64_t steps) {
  if (steps < 1) throw UsageError(fmt::format("gradient accumulation steps must be at least 1, got {}", steps));
  impl_->accumulation_steps_ = steps;
}
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
std::int64_t Engine::micro_steps() const { return impl_->micro_steps_; }
const StepResult& Engine::last_step() const { return impl_->last_; }

std::int64_t Engine::gather(const std::vector<at::Tensor>& parameters) {
  impl_->moved_->require_none("gather");
  impl_->state_.absorb_replaced();
  auto& pager = impl_->state_.pager();
  std::set<int> pages;
  for (const auto& parameter : parameters) {
    const auto* link = paging::link_of(parameter.unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl());
    if (link == nullptr || link->handle != pager.handle()) {
      throw UsageError("gather() was given a tensor that is not a parameter of this engine");
    }
    pages.insert(link->page);
  }
  for (const int page : pages)
    if (pager.paged(page)) pager.touch(page, /*writes=*/false, "gathered parameters");
  impl_->tickets_[impl_->next_ticket_] = std::move(pages);
  return impl_->next_ticket_++;
}
void Engine::release(std::int64_t ticket, int modifier_rank) { impl_->release(ticket, modifier_rank); }

std::string Engine::save_checkpoint(const SaveOptions& options) {
  impl_->moved_->require_none("save_checkpoint");
  if (impl_->reducer_->anything_arrived()) {
    throw UsageError(
        "save_checkpoint() was called with gradients that no step has used, and a checkpoint keeps none; call it after "
        "the step() that ends the update, or forget them with zero_grad()");
  }
  return save_state(impl_->checkpointed(), impl_->training(), options, impl_->background_save_.get());
}

void Engine::finish_save() {
  if (impl_->background_save_) impl_->background_save_->wait();
}

void Engine::check_save() {
  if (std::exchange(impl_->flags_.save_failed, false)) finish_save();
}

void Engine::request_stop() noexcept { impl_->stop_requested_ = true; }
bool Engine::stop_agreed() const { return impl_->flags_.stop_requested; }

std::optional<std::string> Engine::find_checkpoint(const std::string& folder, const std::optional<std::string>& tag) {
  finish_save();
  return find_step(*impl_->communicator_, folder, tag, impl_->config_.own.allow_fallback);
}

LoadReport Engine::load_checkpoint(checkpoint::Checkpoint& step, const LoadOptions& options) {
  impl_->moved_->require_none("load_checkpoint");
  impl_->speculation_->undo();
  auto report = load_state(impl_->checkpointed(), step, options);
  impl_->resume(step.manifest().training, options);
  return report;
}

void Engine::offload_states(const StateKinds& which, bool pin_memory) {
  impl_->moved_->move_out(which, {c10::kCPU, Tier::kHost, pin_memory && !impl_->device_.is_cpu()});
}
void Engine::reload_states() { impl_->moved_->move_back(); }

void Engine::trim_memory() {
  impl_->state_.pager().trim(/*evict_all=*/true);
  impl_->reducer_->trim();
}

const std::shared_ptr<Ledger>& Engine::ledger() const { return impl_->ledger_; }
paging::PagerStats Engine::pager_stats() const { return impl_->state_.pager().stats(); }
io::MoverStats Engine::disk_traffic() const { return impl_->state_.disk_traffic(impl_->reducer_->disk()); }
std::vector<paging::PageCounts> Engine::page_counts() const { return impl_->state_.pager().page_counts(); }
std::shared_ptr<const Timeline> Engine::timeline() const { return impl_->watch_.timeline(); }
plan::PlacedBytes Engine::formula_bytes() const {
  return plan::placed_state_bytes(impl_->state_.counts(), impl_->formula());
}
plan::StateBytes Engine::formula_bytes_at_stage(int stage) const {
  auto options = impl_->formula();
  options.stage = stage;
  return plan::model_state_bytes(impl_->state_.counts(), options);
}
const comm::Communicator& Engine::communicator() const { return *impl_->communicator_; }
std::int64_t Engine::trainable_numel() const { return impl_->trainable_numel_; }
std::int64_t Engine::page_count() const { return static_cast<std::int64_t>(impl_->state_.layout()->pages().size()); }

}  // namespace zeropage::engine
