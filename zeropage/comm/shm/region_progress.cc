#include <fmt/format.h>

#include "zeropage/base/error.h"
#include "zeropage/comm/shm/region_communicator.h"

// The progress of collectives: steps 2 to 6 of the protocol in region_control.h.

namespace zeropage::comm {

/// Runs every step of this rank whose precondition holds.
void RegionCommunicator::advance() {
  throw_if_failed();
  std::size_t at = 0;
  while (at < pending_.size()) {
    Operation& op = *pending_[at];
    if (!op.agreed && !agree(op)) return;
    const bool staged = op.route == Route::kStaged;
    if (staged && at > 0) return;
    run_steps(op);
    if (!op.executed()) {
      if (staged) return;
      ++at;
    } else if (at > 0) {
      ++at;
    } else {
      control_->rank(rank_).progress.store(op.end(), std::memory_order_release);
      control_->notify();
      pending_.pop_front();
    }
  }
}

void RegionCommunicator::run_steps(Operation& op) {
  while (op.step < op.steps) {
    const bool ready = op.step > 0                  ? peers_did(op, op.step)
                       : op.route == Route::kStaged ? peers_reached(op.base)
                                                    : true;
    if (!ready) return;
    bytes_moved_ += run_step(op, *control_, rank_);
    ++op.step;
    slot_of(rank_, op.sequence).done.store(op.base + static_cast<std::uint64_t>(op.step), std::memory_order_release);
    control_->notify();
  }
}

/// True when every rank has started `op`; then its route is known. A rank that started another collective is an error,
/// which ends everything.
bool RegionCommunicator::agree(Operation& op) {
  bool all_started = true;
  for (int q = 0; q < size_; ++q) {
    if (control_->rank(q).started.load(std::memory_order_acquire) <= op.sequence) {
      all_started = false;
      continue;
    }
    const Call& theirs = slot_of(q, op.sequence).call;
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
  agreed_progress_ = op.end();
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
    const Call& call = slot_of(q, op.sequence).call;
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

bool RegionCommunicator::peer_did(int q, const Operation& op, std::int64_t steps) const {
  const std::uint64_t done = slot_of(q, op.sequence).done.load(std::memory_order_acquire);
  return done >= op.base + static_cast<std::uint64_t>(steps);
}

bool RegionCommunicator::peers_did(const Operation& op, std::int64_t steps) const {
  for (int q = 0; q < size_; ++q) {
    if (q != rank_ && !peer_did(q, op, steps)) return false;
  }
  return true;
}

bool RegionCommunicator::finish(Operation& op) {
  op.complete = op.executed() && (op.route == Route::kInline || peers_did(op, op.steps));
  return op.complete;
}

}  // namespace zeropage::comm
