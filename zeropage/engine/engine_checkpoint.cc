// Saving an engine's state and going on from a saved one.
#include <utility>

#include "zeropage/base/error.h"
#include "zeropage/checkpoint/find_step.h"
#include "zeropage/engine/engine_impl.h"

namespace zeropage::engine {

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

std::unique_ptr<checkpoint::Checkpoint> Engine::find_checkpoint(const std::string& folder,
                                                                const std::optional<std::string>& tag) {
  finish_save();
  return checkpoint::find_step(checkpoint::system_files(), *impl_->communicator_, folder, tag,
                               impl_->config_.own.allow_fallback);
}

LoadReport Engine::load_checkpoint(checkpoint::Checkpoint& step, const LoadOptions& options) {
  impl_->moved_->require_none("load_checkpoint");
  impl_->speculation_->undo();
  auto report = load_state(impl_->checkpointed(), step, options);
  impl_->resume(step.manifest().training, options);
  if (!options.module_only) impl_->run_->continue_as(step.manifest().run);
  return report;
}
}  // namespace zeropage::engine
