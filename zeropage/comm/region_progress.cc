#include <fmt/format.h>

#include "zeropage/base/error.h"
#include "zeropage/comm/region_communicator.h"

// How collectives advance: steps 2 to 5 of the protocol in region_control.h.

namespace zeropage::comm {

/// Does every own step whose precondition holds, in the order of the collectives.
void RegionCommunicator::advance() {
  throw_if_aborted();
  while (!pending_.empty()) {
    Operation& op = *pending_.front();
    if (!op.agreed && !agree(op)) return;
    while (op.step < op.steps) {
      const bool starts_at_once = op.step == 0 && op.route != Route::kStaged;
      if (!starts_at_once && !peers_reached(op.base + static_cast<std::uint64_t>(op.step))) return;
      bytes_moved_ += run_step(op, *control_, rank_);
      ++op.step;
      control_->rank(rank_).progress.store(op.base + static_cast<std::uint64_t>(op.step), std::memory_order_release);
      control_->notify();
    }
    pending_.pop_front();
  }
}

/// True when every rank has started `op`; then its route is known. A rank that started something else ends it all.
bool RegionCommunicator::agree(Operation& op) {
  bool all_started = true;
  for (int q = 0; q < size_; ++q) {
    if (control_->rank(q).started.load(std::memory_order_acquire) <= op.sequence) {
      all_started = false;
      continue;
    }
    const Call& theirs = control_->rank(q).slots[op.sequence % kSlots].call;
    if (same_call(op.call, theirs)) continue;
    const std::string message = describe_mismatch(op.sequence, rank_, op.call, q, theirs);
    abort(message);
    throw PeerError(message);
  }
  if (!all_started) return false;
  choose_route(op);
  op.base = agreed_progress_;
  op.steps = count_steps(op, size_);
  op.agreed = true;
  agreed_progress_ = op.base + static_cast<std::uint64_t>(op.steps);
  slot_free_at_[op.sequence % kSlots] = agreed_progress_;
  return true;
}

void RegionCommunicator::choose_route(Operation& op) {
  op.route = Route::kInline;
  if (input_bytes(op.call, size_) <= kInlineBytes) return;
  op.route = Route::kStaged;
  op.peer_inputs.assign(static_cast<std::size_t>(size_), nullptr);
  for (int q = 0; q < size_; ++q) {
    if (op.call.kind == OpKind::kBroadcast && q != op.call.root) continue;
    const Call& call = control_->rank(q).slots[op.sequence % kSlots].call;
    if (call.memory == kPrivate) return;
    const std::byte* address = memories_->address({call.memory, call.memory_offset}, q);
    if (address == nullptr) {
      const std::string message = fmt::format(
          "rank {} uses memory in {} that rank {} has freed; free a Memory when no "
          "rank uses it any more",
          q, describe_call(op.call), rank_);
      abort(message);
      throw UsageError(message);
    }
    op.peer_inputs[static_cast<std::size_t>(q)] = address;
  }
  op.route = Route::kDirect;
}

bool RegionCommunicator::peers_reached(std::uint64_t progress) const {
  for (int q = 0; q < size_; ++q) {
    if (q != rank_ && control_->rank(q).progress.load(std::memory_order_acquire) < progress) return false;
  }
  return true;
}

bool RegionCommunicator::finish(Operation& op) {
  op.complete =
      op.executed() && (op.route == Route::kInline || peers_reached(op.base + static_cast<std::uint64_t>(op.steps)));
  return op.complete;
}

}  // namespace zeropage::comm
