// The step: the global check over all ranks, the update, or the step that is skipped. Its order matters:
//
//   1. The program's writes to `p.grad` are added to the sums before left gradients: the values that `p.grad` shows are
//      in the sums already, and would be added twice.
//   2. Errors on a single rank are raised before end_micro_step, so that the call can be repeated.
//   3. adopt_replaced_data before the global check, which compares the program's writes (including `p.data = ...`).
//   4. The UpdateScope begins before the global check: after it a peer may change shards that an operator of another
//      thread of this rank reads.
//   5. agree: the last reductions, then the squares of the sums; then the end of overlapped updates
//      (Speculation::close), whose number belongs to this step; then the exchange. When it fails on some rank, the
//      overlapped updates are undone, and the state is unchanged.
//   6. A skipped step keeps only the program's writes to parameters.
//   7. The program's part (`call`) may still fail, then on all ranks. From the first change on (`change`) an error
//      makes the engine unusable: ranks may have updated different pages.
//   8. After the update: mark_writes_as_equal, so that the update's own writes do not count as the program's; then
//      reset, because the update reads gradients until its end; then the loss scale, which divisor() and the message of
//      a skipped step use; then the schedule, for the next step; last the comparison of replicas, of the new state.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "zeropage/base/error.h"
#include "zeropage/engine/engine_impl.h"
#include "zeropage/engine/replica_check.h"
#include "zeropage/optim/norm.h"

namespace zeropage::engine {

GlobalCheck Engine::Impl::agree(bool calls) {
  reducer_->finish();
  LocalCheck mine;
  const auto written = state_.written_pages();
  mine.flags = {background_save_ && background_save_->failed(), stop_requested_, calls,
                std::ranges::count(written, true) > 0};
  mine.trace_hash = state_.pager().end_pass();
  const auto sum = sum_gradients(state_, *reducer_, communicator_->rank());
  mine.sum_of_squares = sum.sum_of_squares;
  mine.overflow_parameter = sum.overflow_parameter;
  last_ = StepResult{};
  last_.pages_ahead = speculation_->close();
  GlobalCheck global_check;
  try {
    global_check = agree_on_step(*communicator_, mine);
    if (global_check.flags.wrote) compare_writes();
  } catch (...) {
    speculation_->undo();
    throw;
  }
  global_check.received = reducer_->received_anywhere();
  flags_ = global_check.flags;
  state_.pager().set_trace_agreed(global_check.traces_agree);
  return global_check;
}

bool Engine::Impl::step(const ClientUpdate& caller) {
  require_whole_state("step");
  if (groups_.empty()) {
    throw UsageError(
        "step() needs an optimizer: name one in the configuration (\"optimizer\": {\"type\": \"AdamW\", ...}) or pass "
        "an object to initialize (C++: Options::optimizer)");
  }
  gradients_->apply_user_writes();  // first: what `p.grad` shows is in the sums already
  reducer_->take_left_gradients();
  if (!window_.had_backward() && !reducer_->anything_arrived()) {
    throw UsageError(
        fmt::format("step() was called before backward(): there are no gradients; call engine.backward(loss) first{}",
                    device_.is_cpu()
                        ? ""
                        : ". A graph of the device (torch.cuda.graph) that contains the backward runs no hooks when it "
                          "is replayed, so its gradients do not reach the engine: capture the forward alone"));
  }
  require_states(config_.optimizer, groups_);
  const bool boundary = window_.at_boundary();
  // No gradient of this rank has begun a backward in this micro step, but a peer's may have, and it waits for all
  // ranks.
  if (!boundary && !window_.had_backward()) reducer_->end_backward();
  reducer_->end_step();
  if (boundary && config_.optimizer.kind == config::OptimizerKind::kClient && !caller) {
    throw UsageError("step() needs the program's optimizer, which this call does not run");
  }
  window_.end_micro_step();
  forward_begun_ = false;
  last_.applied = false;
  if (!boundary) return false;
  warn_of_second_update();

  state_.adopt_replaced_data();
  const paging::UpdateScope scope(state_.pager());  // before any rank changes its shards
  GlobalCheck global_check = agree(caller != nullptr);
  const double norm = std::sqrt(global_check.sum_of_squares) / divisor();
  if (config_.gradients.norm) last_.gradient_norm = norm;
  const bool overflow = checks_overflow(config_) && !std::isfinite(global_check.sum_of_squares);
  if (overflow) {
    speculation_->undo();
    last_.undone = last_.pages_ahead > 0;
    state_.take_user_writes();
    last_.overflow = true;
    count_skip(global_check);
  } else {
    last_.clip_coefficient = optim::clip_coefficient(norm, config_.gradients.clipping);
    const auto gradient_scale = static_cast<float>(last_.clip_coefficient / divisor());
    const auto from_caller = call(global_check, gradient_scale, caller);
    change([&] { apply(global_check, gradient_scale, from_caller.get()); });
    last_.applied = true;
    consecutive_skips_ = 0;
  }
  ++global_steps_;
  state_.mark_writes_as_equal();
  reducer_->reset();
  window_.end();
  paging::FunctionObserver::forget(*state_.pager().handle());
  if (observer_ && !paging::FunctionObserver::saw_function(*state_.pager().handle())) observer_.reset();
  if (scaler_) scaler_->update(overflow, last_.overflow_parameter);
  if (!overflow && schedule_) {
    schedule_->step();
    take_scheduled();
  }
  const std::int64_t every = config_.zeropage.replica_check_steps;
  if (every > 0 && global_steps_ % every == 0) compare_replicas(state_, *communicator_, global_steps_);
  return true;
}

void Engine::Impl::warn_of_second_update() {
  if (!second_update_.happened() || job().rank() != 0) return;
  warn_once_.warn(
      "second update",
      "parameters were changed between backward() and engine.step(): was optimizer.step() left in the loop? "
      "The engine's own update would be added to it: leave the call out, or give the optimizer to initialize "
      "(C++: Options::optimizer)");
}

void Engine::Impl::zero_grad() {
  if (window_.ended() > 0 && reducer_->anything_arrived() && !backward_failed_ && job().rank() == 0) {
    warn_once_.warn(
        "zero_grad",
        fmt::format("zero_grad() dropped the gradients of {} micro step(s) that no update had used, and the "
                    "accumulation of {} begins again: called before every micro step, it prevents every update. step() "
                    "forgets gradients "
                    "by itself after an update; leave zero_grad() out",
                    window_.ended(), window_.steps()));
  }
  gradients_->discard();
  reducer_->reset();
  window_.restart();
  backward_failed_ = false;
  second_update_.forget();
}

void Engine::Impl::compare_writes() {
  if (communicator_->size() == 1) return;
  require_same_writes(*communicator_, *state_.layout(), state_.written_pages(),
                      [this](int parameter) { return state_.digest(parameter); });
}

/// In the middle of an exchange of gradients, on all ranks: starts the training of pages that were frozen when the
/// engine was made.
void Engine::Impl::begin_training(const std::vector<int>& pages) {
  // Their thread reads the state's tables and the slots of staging, which change here.
  if (speculation_) speculation_->wait();
  for (const int page : pages) state_.begin_training(page);
  update_pass_->grow();
}

/// Runs all changes of the state. Before it, an error leaves every rank with its old state; during it, ranks may have
/// changed different parts.
void Engine::Impl::change(const std::function<void()>& apply) {
  const auto fail = [&](const std::exception& error) {
    failure_ = fmt::format(
        "the update of step {} ended in the middle on rank {}, and the state of this engine is no longer consistent; "
        "restart from a checkpoint. The cause: {}",
        global_steps_ + 1, job().rank(), error.what());
    communicator_->abort(failure_);
    state_.abandon_step();
    return failure_;
  };
  try {
    state_.take_user_writes();
    apply();
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

void Engine::Impl::apply(const GlobalCheck& global_check, float gradient_scale, const ClientValues* from_caller) {
  const Span span(timeline(), SpanKind::kUpdate, "update");
  for (std::size_t i = 0; i < steps_.size(); ++i) {
    if (!global_check.received[i]) continue;
    ++steps_[i];
    // Like an update in place: a graph from before this step now raises torch's error instead of using new values.
    state_.tensors()[i].unsafeGetTensorImpl()->bump_version();
  }
  // The program's optimizer may change parameters without a gradient, too.
  const bool all = from_caller != nullptr;
  const std::vector<bool> changed = all ? std::vector<bool>(steps_.size(), true) : global_check.received;
  UpdateInputs inputs{config_.optimizer.kind, groups_, steps_, changed, gradient_scale, from_caller};
  write(all ? trained_pages(*state_.layout()) : updated_pages(*state_.layout(), changed), inputs);
}

/// Updates pages in order and publishes them. In an UpdateScope.
void Engine::Impl::write(std::vector<int> updated, UpdateInputs& inputs) {
  state_.pager().drop_stale(updated);
  const bool owned_in_parts = sharding_of_stage(config_.zero.stage).shard_optimizer && communicator_->size() > 1;
  std::vector<comm::WorkPtr> gathers;
  // The following gathers are the same everywhere: the global check has compared them.
  std::optional<comm::UncheckedScope> unchecked(std::in_place, *communicator_);
  if (inputs.kind == config::OptimizerKind::kLamb) {
    inputs.lamb_ratios = lamb_ratios(*update_pass_, updated, inputs, *communicator_);
  }
  last_.undone = speculation_->validate(inputs) < last_.pages_ahead;
  update_pages(*update_pass_, std::move(updated), inputs, *speculation_, [&](int page) {
    if (state_.pager().paged(page)) {
      state_.pager().publish(page);
    } else if (owned_in_parts) {
      gathers.push_back(communicator_->all_gather(state_.owned(page).parameter, state_.whole_page(page),
                                                  state_.layout()->pages()[page].shard_bytes(),
                                                  comm::Tag{"updated parameters", page}));
    }
  });
  for (auto& gather : gathers) gather->wait();
  unchecked.reset();
  state_.commit_step();
  state_.pager().refresh_pinned();
}

void Engine::Impl::count_skip(const GlobalCheck& global_check) {
  ++skipped_steps_;
  ++consecutive_skips_;
  if (global_check.overflow_parameter >= 0) {
    last_.overflow_parameter = state_.layout()->parameters()[global_check.overflow_parameter].name;
  }
  if (job().rank() == 0) {
    log_warn(fmt::format(
        "step {} was skipped, and nothing has changed: a gradient is inf or nan, first in parameter '{}'{}",
        global_steps_ + 1, last_.overflow_parameter, scaler_ ? fmt::format("; the loss scale was {}", scale()) : ""));
  }
  if (config_.zeropage.max_consecutive_skips > 0 && consecutive_skips_ >= config_.zeropage.max_consecutive_skips) {
    throw Error(fmt::format(
        "{} steps in a row were skipped because gradients were not finite, steps {} to {}, in the last one first in "
        "parameter '{}'; lower the learning rate or look for NaN in the data (zeropage.max_consecutive_skips)",
        consecutive_skips_, global_steps_ + 2 - consecutive_skips_, global_steps_ + 1, last_.overflow_parameter));
  }
}

}  // namespace zeropage::engine
