#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <utility>

#include "zeropage/base/blocking.h"
#include "zeropage/base/error.h"
#include "zeropage/comm/call.h"
#include "zeropage/comm/mpi/mpi_group.h"

// The functions of the ranks' own threads: start, wait, give up.

namespace zeropage::comm {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;

constexpr milliseconds kSlice{100};         // between checks for closed ranks
constexpr milliseconds kClosedGrace{1000};  // for data sent before a rank closed
constexpr milliseconds kQuietLimit{2000};   // more than MPI's thread needs, unless MPI itself hangs

std::string name(const MpiOperation& operation) {
  return fmt::format("{} (collective {})", describe_call(operation.call), operation.sequence);
}

}  // namespace

void MpiGroup::wait_until_open() {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, timeout_, [this] { return open_ || !failure_.empty(); });
  if (!open_ && failure_.empty()) time_out(lock, {}, "all ranks to make an MPI communicator");
  throw_if_failed(lock);
}

std::shared_ptr<MpiOperation> MpiGroup::start(MpiOperation operation, bool check) {
  auto shared = std::make_shared<MpiOperation>(std::move(operation));
  {
    std::unique_lock lock(mutex_);
    throw_if_failed(lock);
    shared->sequence = next_sequence_++;
    if (check && size_ > 1) shared->stages.insert(shared->stages.begin(), make_check(*shared));
    shared->complete = shared->stages.empty();
    if (shared->complete) return shared;
    started_.push_back(shared);
  }
  runtime_.wake();
  return shared;
}

bool MpiGroup::poll(MpiOperation& operation) {
  std::unique_lock lock(mutex_);
  if (!operation.complete) throw_if_failed(lock);
  return operation.complete;
}

void MpiGroup::wait(MpiOperation& operation) {
  if (poll(operation)) return;
  const auto blocking = enter_blocking();
  std::unique_lock lock(mutex_);
  const auto deadline = Clock::now() + timeout_;
  while (!operation.complete) {
    throw_if_failed(lock);
    throw_if_closed(lock, operation.missing, name(operation));
    if (Clock::now() >= deadline) time_out(lock, operation.missing, name(operation));
    changed_.wait_until(lock, std::min(deadline, Clock::now() + kSlice));
  }
}

void MpiGroup::wait_until(const std::function<bool()>& ready, int peer, const std::string& what) {
  const auto blocking = enter_blocking();
  const auto begin = Clock::now();
  const std::vector<int> missing(peer < 0 ? 0 : 1, peer);
  while (!ready()) {
    std::unique_lock lock(mutex_);
    throw_if_failed(lock);
    throw_if_closed(lock, missing, what);
    const auto waited = std::chrono::duration_cast<microseconds>(Clock::now() - begin);
    if (waited >= timeout_) time_out(lock, missing, what);
    changed_.wait_for(lock, std::clamp(waited / 4, microseconds(20), microseconds(1000)));
  }
}

void MpiGroup::throw_if_aborted() {
  std::unique_lock lock(mutex_);
  throw_if_failed(lock);
}

void MpiGroup::abort(const std::string& reason) { fail(fmt::format("rank {} aborted: {}", rank_, reason), true); }

void MpiGroup::close() {
  {
    const std::scoped_lock lock(mutex_);
    closing_ = true;
  }
  runtime_.wake();
}

void MpiGroup::fail(const std::string& failure, bool tell) {
  {
    const std::scoped_lock lock(mutex_);
    if (!failure_.empty()) return;
    failure_ = failure;
    tell_failure_ = tell;
  }
  changed_.notify_all();
  runtime_.wake();
}

void MpiGroup::throw_if_failed(std::unique_lock<std::mutex>& lock) {
  if (failure_.empty()) return;
  changed_.wait_for(lock, kQuietLimit, [this] { return quiet_; });
  throw PeerError(failure_);
}

void MpiGroup::throw_if_closed(std::unique_lock<std::mutex>& lock, const std::vector<int>& missing,
                               const std::string& what) {
  for (const int r : missing) {
    const auto closed_at = closed_at_[static_cast<std::size_t>(r)];
    if (closed_at == Clock::time_point{} || Clock::now() - closed_at < kClosedGrace) continue;
    lock.unlock();
    abort(describe_leaver(r, rank_, what));
    lock.lock();
    throw_if_failed(lock);
  }
}

void MpiGroup::time_out(std::unique_lock<std::mutex>& lock, const std::vector<int>& missing, const std::string& what) {
  const std::string message = fmt::format(
      "rank {} waited {} ms for {}; missing: {}. A rank that is late by design needs a longer timeout", rank_,
      timeout_.count(), what, missing.empty() ? "a peer" : fmt::format("rank {}", fmt::join(missing, ", rank ")));
  lock.unlock();
  abort(message);
  lock.lock();
  changed_.wait_for(lock, kQuietLimit, [this] { return quiet_; });
  throw TimeoutError(message);
}

}  // namespace zeropage::comm
