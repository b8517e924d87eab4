// The program's part of a step, and changes to parameters by other methods of its optimizer; see client_update.h.
#include <utility>

#include "zeropage/base/error.h"
#include "zeropage/engine/engine_impl.h"

namespace zeropage::engine {

/// When it fails, the step has not happened and its gradients are dropped. Returns the values to write; null: none. If
/// the engine itself updates, the program sees the clipped `p.grad` that the update will use, and its writes to it take
/// effect.
std::unique_ptr<ClientValues> Engine::Impl::call(GlobalCheck& global_check, float gradient_scale,
                                                 const ClientUpdate& caller) {
  std::unique_ptr<ClientValues> values;
  if (!global_check.flags.calls) return values;
  try {
    run_on_all_ranks(*communicator_, "the optimizer's step failed, so that no rank has applied it:", [&] {
      state_.take_user_writes();
      if (config_.optimizer.kind == config::OptimizerKind::kClient) {
        values = std::make_unique<ClientValues>(*update_pass_, global_check.received, gradient_scale, ledger_);
      } else {
        gradients_->publish(1.0 / gradient_scale);
      }
      if (caller) caller(values ? values->segments() : std::vector<ClientSegment>{});
      require_states(config_.optimizer, groups_);
    });
    gradients_->apply_user_writes();
    global_check.received = reducer_->received_anywhere();
  } catch (...) {
    speculation_->undo();
    gradients_->discard();
    reducer_->reset();
    window_.restart();
    throw;
  }
  return values;
}

std::vector<ClientSegment> Engine::Impl::begin_edit() {
  require_whole_state("begin_edit");
  if (edit_) throw UsageError("begin_edit() was called while an edit is open; end it first");
  state_.adopt_replaced_data();
  speculation_->undo();
  state_.take_user_writes();
  edit_ = std::make_unique<ClientValues>(*update_pass_, std::vector<bool>{}, 1.0F, ledger_);
  return edit_->segments();
}

void Engine::Impl::end_edit(const std::string& failure) {
  if (!edit_) throw UsageError("end_edit() was called without begin_edit()");
  const auto values = std::move(edit_);
  const paging::UpdateScope scope(state_.pager());  // before any rank changes its shards
  require_success_everywhere(*communicator_,
                             "a method of the optimizer failed, so that no rank has changed parameters:", failure);
  change([&] {
    const std::vector<bool> all(steps_.size(), true);
    UpdateInputs inputs{config_.optimizer.kind, groups_, steps_, all, 1.0F, values.get()};
    for (const int page : trained_pages(*state_.layout())) {
      for (const auto& place : state_.layout()->pages()[page].placements) {
        state_.tensors()[place.parameter].unsafeGetTensorImpl()->bump_version();
      }
    }
    write(trained_pages(*state_.layout()), inputs);
  });
  state_.mark_writes_as_equal();
  second_update_.forget();
}

std::vector<ClientSegment> Engine::begin_edit() { return impl_->begin_edit(); }
void Engine::end_edit(const std::string& failure) { impl_->end_edit(failure); }
void Engine::accept_writes() { impl_->second_update_.forget(); }

}  // namespace zeropage::engine
