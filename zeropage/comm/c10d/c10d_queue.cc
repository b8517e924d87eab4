#include "zeropage/comm/c10d/c10d_queue.h"

#include <ATen/ops/empty.h>
#include <fmt/format.h>

#include <cstring>
#include <thread>
#include <utility>

#include "zeropage/base/blocking.h"
#include "zeropage/base/error.h"
#include "zeropage/comm/c10d/c10d_aborts.h"

namespace zeropage::comm {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr milliseconds kSlice{500};   // between checks of the store for a peer's abort
constexpr milliseconds kGrace{5000};  // so that the backend's own timeout, which frees the buffers, is first

std::string position_key(int rank) { return fmt::format("zeropage/at/{}", rank); }

}  // namespace

std::string message_in_flight() {
  std::string message;
  try {
    throw;
  } catch (const c10::Error& error) {
    message = error.what_without_backtrace();
  } catch (const std::exception& error) {
    message = error.what();
  }
  const std::size_t source_end = message.starts_with('[') ? message.find("] ") : message.npos;
  return source_end == message.npos ? message : message.substr(source_end + 2);
}

bool is_timeout(const std::string& message) {
  return message.find("imed out") != message.npos || message.find("imeout") != message.npos;
}

C10dQueue::C10dQueue(ProcessGroupPtr data, ProcessGroupPtr control, milliseconds timeout,
                     std::shared_ptr<Aborts> aborts)
    : data_(std::move(data)),
      control_(std::move(control)),
      store_(control_->getStore()),
      aborts_(aborts ? std::move(aborts) : store_aborts(store_)),
      timeout_(timeout),
      rank_(data_->getRank()),
      size_(data_->getSize()),
      owner_(rank_) {}

C10dWorkPtr gather_into(const ProcessGroupPtr& group, at::Tensor whole, at::Tensor shard, milliseconds timeout) {
  c10d::AllgatherOptions options;
  options.timeout = timeout;
  return group->_allgather_base(whole, shard, options);
}

std::shared_ptr<C10dOperation> C10dQueue::start(C10dOperation operation, bool check) {
  throw_if_failed();
  operation.sequence = next_sequence_++;
  if (check && size_ > 1) {
    publish_position(operation);
    if (!operation.stages.empty() && operation.stages.front().on_stream) {
      operation.check = make_check(operation);
    } else {
      operation.stages.insert(operation.stages.begin(), make_check(operation));
    }
  }
  auto shared = std::make_shared<C10dOperation>(std::move(operation));
  pending_.push_back(shared);
  advance();
  return shared;
}

bool C10dQueue::poll(C10dOperation& operation) {
  if (operation.complete) return true;
  advance();
  operation.complete = operation.all_started() && passed(operation) && collect(operation, true);
  return operation.complete;
}

void C10dQueue::wait(C10dOperation& operation) {
  while (!poll(operation)) {
    C10dOperation& next = operation.all_started() ? operation : *pending_.front();
    block(next);
    finish_stage(next);
  }
}

void C10dQueue::order_stream_after(C10dOperation& operation) {
  advance();
  while (!operation.all_started()) {
    C10dOperation& next = *pending_.front();
    block(next);
    finish_stage(next);
    advance();
  }
  finish_stage(operation);
}

void C10dQueue::wait_until(const std::function<bool()>& ready, const std::string& what) {
  const auto blocking = enter_blocking();
  const auto begin = Clock::now();
  auto next_look = begin + kSlice;
  while (!ready()) {
    throw_if_failed();
    advance();
    const auto now = Clock::now();
    if (now >= next_look) {
      throw_if_aborted_by_peer();
      next_look = now + kSlice;
    }
    if (now - begin >= timeout_) {
      const std::string message =
          fmt::format("rank {} waited {} ms for {}{}", rank_, timeout_.count(), what, positions(next_sequence_));
      abort(message);
      throw TimeoutError(message);
    }
    std::this_thread::sleep_for(milliseconds(1));
  }
}

void C10dQueue::abort(const std::string& reason) {
  if (owner_.is_forked()) return;
  {
    const std::scoped_lock lock(failure_mutex_);
    if (!failure_.empty()) return;
    failure_ = fmt::format("rank {} aborted: {}", rank_, reason);
  }
  if (aborts_) aborts_->publish(failure_);
  try {
    data_->abort();
    control_->abort();
  } catch (const std::exception&) {
    // The peers then notice it by closed connections, or by their timeout.
  }
}

/// A stage in which all ranks exchange the description of their collective, before anything else is sent.
C10dStage C10dQueue::make_check(const C10dOperation& operation) {
  const auto bytes = static_cast<std::int64_t>(sizeof(Call));
  const Call call = operation.call;
  const std::uint64_t sequence = operation.sequence;
  const at::Tensor mine = at::empty({bytes}, at::TensorOptions().dtype(at::kByte));
  const at::Tensor all = at::empty({bytes * size_}, mine.options());
  std::memcpy(mine.data_ptr(), &call, sizeof(call));
  C10dStage stage;
  stage.start = [=, this] { return gather_into(control_, all, mine, timeout_); };
  stage.finish = [=, this] {
    for (int r = 0; r < size_; ++r) {
      Call theirs;
      std::memcpy(&theirs, static_cast<const std::byte*>(all.data_ptr()) + r * bytes, sizeof(theirs));
      if (!same_call(call, theirs)) throw PeerError(describe_mismatch(sequence, rank_, call, r, theirs));
    }
  };
  return stage;
}

/// Publishes this rank's position for the peers' error messages. Cost: one message to the store.
void C10dQueue::publish_position(const C10dOperation& operation) {
  if (!store_) return;
  try {
    store_->set(position_key(rank_), fmt::format("{} {}", operation.sequence, describe_call(operation.call)));
  } catch (const std::exception&) {
    // Only error messages have less information.
  }
}

/// Submits stages, in order, as far as possible without blocking.
void C10dQueue::advance() {
  throw_if_failed();
  while (!pending_.empty()) {
    C10dOperation& operation = *pending_.front();
    while (!operation.all_started()) {
      if (!collect(operation, false)) return;
      try {
        if (operation.started == 0 && operation.check.start) operation.check_work = operation.check.start();
        operation.work = operation.stages[operation.started++].start();
      } catch (...) {
        rethrow(operation);
      }
    }
    pending_.pop_front();
  }
}

/// True when the running stage, if any, is done and its result processed.
bool C10dQueue::collect(C10dOperation& operation, bool final_stage) {
  if (!operation.work) return true;
  const bool need_not_wait = !final_stage && operation.stages[operation.started - 1].on_stream;
  if (!need_not_wait && !operation.work->isCompleted()) return false;
  finish_stage(operation);
  return true;
}

/// Whether the check that runs in parallel to the stages has passed.
bool C10dQueue::passed(C10dOperation& operation) {
  if (!operation.check_work) return true;
  if (!operation.check_work->isCompleted()) return false;
  try {
    std::exchange(operation.check_work, {})->wait();
    operation.check.finish();
  } catch (...) {
    rethrow(operation);
  }
  return true;
}

/// Blocks until the check has passed and the running stage is done, or orders the stream after it.
void C10dQueue::block(C10dOperation& operation) {
  if (operation.check_work) block(operation, *operation.check_work);
  if (!passed(operation)) return;
  if (operation.work && !operation.stages[operation.started - 1].on_stream) block(operation, *operation.work);
}

/// Blocks until `work` of `operation` is complete.
void C10dQueue::block(C10dOperation& operation, c10d::Work& work) {
  const auto blocking = enter_blocking();
  const auto begin = Clock::now();
  bool said_where = false;
  while (!work.isCompleted()) {
    try {
      work.wait(kSlice);
    } catch (const std::exception&) {
      if (work.isCompleted()) return;  // finish_stage handles the result
    }
    if (work.isCompleted()) return;
    if (!std::exchange(said_where, true))
      publish_position(operation);  // ranks that have not reached this position by the timeout are late
    throw_if_aborted();
    if (Clock::now() - begin > timeout_ + kGrace) {
      const std::string message =
          fmt::format("rank {} timed out after {} ms in {} (collective {}){}", rank_, timeout_.count(),
                      describe_call(operation.call), operation.sequence, positions(operation.sequence));
      abort(message);
      throw TimeoutError(message);
    }
  }
}

void C10dQueue::finish_stage(C10dOperation& operation) {
  const C10dWorkPtr work = std::exchange(operation.work, {});
  if (!work) return;
  try {
    work->wait();  // it is complete: rethrows its error, or orders the stream
    if (const auto& finish = operation.stages[operation.started - 1].finish) finish();
  } catch (...) {
    rethrow(operation);
  }
}

void C10dQueue::throw_if_aborted() {
  throw_if_failed();
  throw_if_aborted_by_peer();
}

void C10dQueue::throw_if_failed() {
  owner_.throw_if_forked();
  const std::scoped_lock lock(failure_mutex_);
  if (!failure_.empty()) throw PeerError(failure_);
}

void C10dQueue::throw_if_aborted_by_peer() {
  const std::string reason = aborts_ ? aborts_->reason() : "";
  if (reason.empty()) return;
  {
    const std::scoped_lock lock(failure_mutex_);
    if (failure_.empty()) failure_ = reason;
  }
  throw PeerError(reason);
}

/// "; missing: rank 1, which last reported collective 7: ...; rank 2 is at collective 9: ...", where `sequence` is the
/// collective in which this rank waits.
std::string C10dQueue::positions(std::uint64_t sequence) {
  std::string late;
  std::string others;
  try {
    for (int r = 0; store_ && r < size_; ++r) {
      if (r == rank_) continue;
      const std::string where = store_->check({position_key(r)}) ? store_->get_to_str(position_key(r)) : "";
      const std::size_t number_end = where.find(' ');
      if (where.empty()) {
        late += fmt::format("; missing: rank {}, which has reported no collective", r);
      } else if (std::stoull(where) < sequence) {
        late += fmt::format("; missing: rank {}, which last reported collective {}:{}", r, where.substr(0, number_end),
                            where.substr(number_end));
      } else {
        others +=
            fmt::format("; rank {} is at collective {}:{}", r, where.substr(0, number_end), where.substr(number_end));
      }
    }
  } catch (const std::exception&) {
    others += "; the store does not answer";
  }
  return late + others;
}

/// Turns the current exception of `operation` into one of ours, and informs the peers.
void C10dQueue::rethrow(const C10dOperation& operation) {
  try {
    throw;
  } catch (const Error& error) {
    abort(error.what());
    throw;
  } catch (...) {
    const std::string cause = message_in_flight();
    throw_if_aborted();
    const bool timed_out = is_timeout(cause);
    const std::string message =
        fmt::format("rank {} {} in {} (collective {}): {}{}; see the other ranks' output for the cause", rank_,
                    timed_out ? fmt::format("timed out after {} ms", timeout_.count()) : "lost a peer",
                    describe_call(operation.call), operation.sequence, cause, positions(operation.sequence));
    abort(message);
    if (timed_out) throw TimeoutError(message);
    throw PeerError(message);
  }
}

}  // namespace zeropage::comm
