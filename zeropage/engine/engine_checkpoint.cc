// Saving an engine's state and resuming from a saved one.
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <utility>

#include "zeropage/base/error.h"
#include "zeropage/checkpoint/find_checkpoint.h"
#include "zeropage/engine/engine_impl.h"

namespace zeropage::engine {

checkpoint::TrainingState Engine::Impl::training() const {
  checkpoint::TrainingState training{
      global_steps_, skipped_steps_, consecutive_skips_, window_.micro_steps(), {}, {}, window_.samples()};
  if (schedule_) training.schedule_iteration = schedule_->last_batch_iteration();
  if (scaler_) training.loss_scale = scaler_->state();
  return training;
}

/// Gives state to parameters that were frozen when this engine was made and are trained in the loaded step.
void Engine::Impl::begin_training_of(const checkpoint::Manifest& manifest) {
  std::set<std::string> trained;
  for (const auto& record : manifest.parameters) {
    if (record.trainable) trained.insert(record.name);
  }
  std::set<int> pages;
  const auto& layout = *state_.layout();
  for (std::size_t i = 0; i < layout.parameters().size(); ++i) {
    const auto& spec = layout.parameters()[i];
    if (!spec.trainable && spec.group >= 0 && trained.contains(spec.name))
      pages.insert(layout.page_of(static_cast<int>(i)));
  }
  if (!pages.empty()) reducer_->begin_training({pages.begin(), pages.end()});
}

/// After a load: parameters that are trained here but were not in the saved step get zero moments again.
void Engine::Impl::forget_untrained(const checkpoint::Manifest& manifest) {
  const auto& layout = *state_.layout();
  std::map<std::string_view, int> began_later;  // mostly empty, though there may be very many parameters
  for (std::size_t i = 0; i < layout.parameters().size(); ++i) {
    const auto parameter = static_cast<int>(i);
    if (layout.began_later(layout.page_of(parameter))) began_later.emplace(layout.parameters()[i].name, parameter);
  }
  if (began_later.empty()) return;
  for (const auto& record : manifest.parameters) {
    const auto found = began_later.find(record.name);
    if (!record.trainable && found != began_later.end()) state_.forget_moments(found->second);
  }
}

void Engine::Impl::resume(const checkpoint::TrainingState& training, const LoadOptions& options) {
  gradients_->discard();
  reducer_->reset();
  window_.restart();
  second_update_.forget();
  last_ = StepResult{};
  if (options.module_only) return;
  global_steps_ = training.global_steps;
  skipped_steps_ = training.skipped_steps;
  consecutive_skips_ = training.consecutive_skips;
  window_.set_micro_steps(training.micro_steps);
  // Steps saved before samples were counted: assumes the current batch size for all of them.
  window_.set_samples(training.samples.value_or(training.global_steps * window_.samples_of_update()));
  if (options.optimizer_states && scaler_ && training.loss_scale) scaler_->set_state(*training.loss_scale);
  if (options.schedule && schedule_ && training.schedule_iteration) {
    schedule_->set_last_batch_iteration(*training.schedule_iteration);
    take_scheduled();
  }
}

std::string Engine::save_checkpoint(const SaveOptions& options) {
  impl_->offloader_->require_resident("save_checkpoint");
  if (impl_->reducer_->anything_arrived()) {
    throw UsageError(
        "save_checkpoint() was called with gradients that no step has used, and a checkpoint keeps none; call it after "
        "the step() that ends the update, or drop them with zero_grad()");
  }
  impl_->state_.adopt_replaced_data();
  impl_->compare_writes();
  auto path = save_state(impl_->checkpointed(), impl_->training(), options, impl_->background_save_.get());
  impl_->state_.mark_writes_as_equal();
  return path;
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
  return checkpoint::find_checkpoint(checkpoint::system_files(), impl_->job(), folder, tag,
                                     impl_->config_.zeropage.allow_fallback);
}

LoadReport Engine::load_checkpoint(checkpoint::Checkpoint& step, const LoadOptions& options) {
  impl_->offloader_->require_resident("load_checkpoint");
  impl_->speculation_->undo();
  const bool with_moments = options.optimizer_states && options.parameters && !options.module_only;
  if (with_moments) impl_->begin_training_of(step.manifest());
  auto report = load_state(impl_->checkpointed(), step, options);
  if (with_moments) impl_->forget_untrained(step.manifest());
  impl_->state_.mark_writes_as_equal();
  impl_->resume(step.manifest().training, options);
  if (!options.module_only) impl_->run_->continue_as(step.manifest().run);
  return report;
}
}  // namespace zeropage::engine
