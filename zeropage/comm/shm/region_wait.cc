#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "zeropage/base/blocking.h"
#include "zeropage/base/error.h"
#include "zeropage/comm/shm/region_communicator.h"

// Waits of a rank: it polls for a while, then sleeps in slices, and after each it checks that the ranks it waits for
// are alive. Every wait ends in success, TimeoutError or PeerError, and an error here also ends the peers' waits.

namespace zeropage::comm {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;

constexpr microseconds kLivenessSlice{50'000};
constexpr microseconds kJobSlice{500'000};  // between looks whether another communicator of the job has aborted

void pause_core() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

/// Waits for the peers when they are kSlots collectives behind.
void RegionCommunicator::reserve_slot() {
  if (started_ < kSlots) return;
  const auto not_executed = [this] { return !pending_.empty() && pending_.front()->sequence <= started_ - kSlots; };
  const auto is_free = [&] { return !not_executed() && peers_reached(slot_free_at_[started_ % kSlots]); };
  if (is_free()) return;
  Wait wait;
  wait.done = [&] {
    advance();
    return is_free();
  };
  wait.missing = [&] {
    return not_executed() ? ranks_missing(*pending_.front()) : ranks_behind(slot_free_at_[started_ % kSlots]);
  };
  wait.what = [this] { return fmt::format("room to start collective {}", started_); };
  wait.peers_notify = true;
  block(wait);
}

std::vector<int> RegionCommunicator::ranks_behind(std::uint64_t progress) const {
  std::vector<int> behind;
  for (int q = 0; q < size_; ++q) {
    if (q != rank_ && control_->rank(q).progress.load(std::memory_order_acquire) < progress) behind.push_back(q);
  }
  return behind;
}

/// The ranks that are missing for the next step of `op`, or for its completion.
std::vector<int> RegionCommunicator::ranks_missing(const Operation& op) const {
  if (op.agreed && op.step == 0) return ranks_behind(op.base);
  std::vector<int> missing;
  for (int q = 0; q < size_; ++q) {
    const bool behind = op.agreed ? q != rank_ && !peer_did(q, op, op.step)
                                  : control_->rank(q).started.load(std::memory_order_acquire) <= op.sequence;
    if (behind) missing.push_back(q);
  }
  return missing;
}

void RegionCommunicator::wait_for(Operation& op) {
  Wait wait;
  wait.done = [&] {
    advance();
    return finish(op);
  };
  // An operation that cannot continue may be blocked by an earlier one: the missing ranks are those of the first that
  // is not done.
  wait.missing = [&] { return ranks_missing(op.executed() ? op : *pending_.front()); };
  wait.what = [&] {
    std::string text = fmt::format("{} (collective {})", describe_call(op.call), op.sequence);
    if (op.executed() || pending_.front().get() == &op) return text;
    const Operation& first = *pending_.front();
    return text + fmt::format(" and the {} before it, first {} (collective {})", op.sequence - first.sequence,
                              describe_call(first.call), first.sequence);
  };
  wait.peers_notify = true;
  block(wait);
}

void RegionCommunicator::wait_until(const std::function<bool()>& ready, int waiting_for, std::string_view what) {
  Wait wait;
  wait.done = [&] {
    advance();
    return ready();
  };
  wait.missing = [&] {
    std::vector<int> missing;
    for (int q = 0; q < size_; ++q) {
      if (q != rank_ && (waiting_for < 0 || waiting_for == q)) missing.push_back(q);
    }
    return missing;
  };
  wait.what = [&] { return std::string(what); };
  wait.peers_notify = false;
  block(wait);
}

void RegionCommunicator::block(const Wait& wait) {
  for (int i = 0; i <= spins_; ++i) {
    if (wait.done()) return;
    pause_core();
  }
  owner_.throw_if_forked();
  const auto blocking = enter_blocking();
  const auto begin = Clock::now();
  auto next_check = begin + kLivenessSlice;
  auto next_look = begin + kJobSlice;
  while (true) {
    const std::uint32_t seen = control_->event.load(std::memory_order_seq_cst);
    if (wait.done()) return;
    const auto now = Clock::now();
    if (now >= next_check) {
      throw_if_lost(wait);
      next_check = now + kLivenessSlice;
    }
    if (now >= next_look) {
      throw_if_job_aborted();
      next_look = now + kJobSlice;
    }
    if (now - begin >= timeout_) throw_timeout(wait);
    const auto left = std::chrono::duration_cast<microseconds>(timeout_ - (now - begin)) + microseconds(1);
    // There is no wake-up for a wait on plain memory: it sleeps for a fraction of the time it has waited already.
    const auto waited = std::chrono::duration_cast<microseconds>(now - begin);
    const auto nap = wait.peers_notify ? kLivenessSlice : std::clamp(waited / 4, microseconds(20), microseconds(1000));
    control_->sleep_until_event(seen, std::min(nap, left));
  }
}

void RegionCommunicator::throw_if_aborted() {
  throw_if_failed();
  throw_if_job_aborted();
}

void RegionCommunicator::throw_if_job_aborted() {
  if (!aborts_) return;
  const std::string reason = aborts_->reason();
  if (reason.empty()) return;
  abort(reason);  // so that its other ranks need not ask
  throw PeerError(reason);
}

/// Looks only at what its own ranks have told. Cost: a look at memory.
void RegionCommunicator::throw_if_failed() {
  if (control_->aborted.load(std::memory_order_acquire) != 2) return;
  if (const std::string first = aborts_ ? aborts_->reason() : ""; !first.empty()) throw PeerError(first);
  if (control_->abort_rank == rank_)
    throw PeerError(fmt::format("this rank ({}) aborted: {}", rank_, control_->abort_reason));
  throw PeerError(fmt::format("rank {} aborted: {}", control_->abort_rank, control_->abort_reason));
}

void RegionCommunicator::throw_if_lost(const Wait& wait) {
  for (const int q : wait.missing()) {
    const bool left = control_->rank(q).left.load(std::memory_order_acquire);
    const std::string fate = transport_->lost(q);
    if (!left && fate.empty()) continue;
    // It may have done its part just before it ended.
    if (wait.done() || std::ranges::count(wait.missing(), q) == 0) continue;
    const std::string message =
        left ? describe_leaver(q, rank_, wait.what())
             : fmt::format(
                   "rank {} is lost ({}) while rank {} waits for {}; see that rank's own output for the cause, "
                   "and restart the job",
                   q, fate, rank_, wait.what());
    abort(message);
    throw PeerError(message);
  }
}

void RegionCommunicator::throw_timeout(const Wait& wait) {
  constexpr std::size_t kShownOthers = 8;
  const std::vector<int> missing = wait.missing();
  std::vector<std::string> late;
  std::vector<std::string> others;
  for (const int q : missing) late.push_back(describe_position(q));
  for (int q = 0; q < size_ && others.size() < kShownOthers; ++q) {
    if (q != rank_ && std::ranges::count(missing, q) == 0) others.push_back(describe_position(q));
  }
  const std::string message = fmt::format(
      "rank {} waited {} ms for {}; missing: {}{}{}. A rank that is late by design needs a "
      "longer timeout",
      rank_, timeout_.count(), wait.what(), fmt::join(late, "; "),
      others.empty() ? "" : "; not late: ", fmt::join(others, "; "));
  abort(message);
  throw TimeoutError(message);
}

/// "rank 1 (pid 12), whose last of 7 collectives is barrier ('step' 3)".
std::string RegionCommunicator::describe_position(int rank) const {
  std::string text = fmt::format("rank {}", rank);
  if (const std::string process = transport_->describe(rank); !process.empty()) text += fmt::format(" ({})", process);
  const std::uint64_t started = control_->rank(rank).started.load(std::memory_order_acquire);
  if (started == 0) return text + ", which has started no collective";
  const Call& last = control_->rank(rank).slots[(started - 1) % kSlots].call;
  return text + fmt::format(", whose last of {} collectives is {}", started, describe_call(last));
}

}  // namespace zeropage::comm
