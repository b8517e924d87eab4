// Backward and step: the verdict over all ranks, the update, or the step that is skipped.
#include <ATen/ops/mul.h>
#include <fmt/format.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <utility>

#include "zeropage/base/error.h"
#include "zeropage/engine/engine_impl.h"
#include "zeropage/engine/replica_check.h"
#include "zeropage/optim/norm.h"

namespace zeropage::engine {

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

Verdict Engine::Impl::agree(bool calls) {
  reducer_->finish();
  LocalVerdict mine;
  mine.received = reducer_->received();
  mine.flags = {background_save_ && background_save_->failed(), stop_requested_, calls};
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
  const Verdict verdict = agree(caller != nullptr);
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
    const auto gradient_scale = static_cast<float>(last_.clip_coefficient / divisor());
    const auto from_caller = call(verdict, gradient_scale, caller);
    change([&] { apply(verdict, gradient_scale, from_caller.get()); });
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
  const std::int64_t every = config_.own.replica_check_steps;
  if (every > 0 && global_steps_ % every == 0) compare_replicas(state_, *communicator_, global_steps_);
  return true;
}

/// From the first change to the last. Up to here an error leaves every rank with the state it had; in between, ranks have come
/// different parts of the way.
void Engine::Impl::change(const std::function<void()>& apply) {
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

void Engine::Impl::apply(const Verdict& verdict, float gradient_scale, const CallerValues* from_caller) {
  const Span span(timeline(), SpanKind::kUpdate, "update");
  for (std::size_t i = 0; i < steps_.size(); ++i) {
    if (!verdict.received[i]) continue;
    ++steps_[i];
    // As an update in place does: a graph from before this step now raises torch's error instead of using new values.
    state_.tensors()[i].unsafeGetTensorImpl()->bump_version();
  }
  // The program's optimizer may change parameters without a gradient, too.
  const bool all = from_caller != nullptr;
  const std::vector<bool> changed = all ? std::vector<bool>(steps_.size(), true) : verdict.received;
  UpdateInputs inputs{config_.optimizer.kind, groups_, steps_, changed, gradient_scale, from_caller};
  write(all ? trained_pages(*state_.layout()) : updated_pages(*state_.layout(), changed), inputs);
}

/// Updates pages, each in its turn, and publishes them.
void Engine::Impl::write(std::vector<int> updated, UpdateInputs& inputs) {
  state_.pager().drop_stale(updated);
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
}  // namespace zeropage::engine
