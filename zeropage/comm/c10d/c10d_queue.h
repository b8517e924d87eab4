/// \file
/// The collectives that one rank has started on c10d process groups, in order.
///
///  1. A collective is a list of stages, each of them one call on a process group and a function for its result.
///     Checked collectives begin with an exchange of their descriptions (the check).
///  2. Process groups match calls of ranks by their order. Hence a stage is only submitted when all stages of earlier
///     collectives have been: every rank submits the same calls in the same order, no matter how often it polls.
///  3. A stage is submitted when the previous one in the same collective is complete; single-stage collectives
///     therefore run in parallel.
///  4. Backends that order a device's streams (NCCL) may wait for ever if ranks start the collectives of two
///     communicators in different orders. So their starts depend only on the rank's calls, and not on the ends of other
///     collectives: such a stage waits neither for the check, which runs in parallel, nor for the previous stage. A
///     result is used when its check has passed. If the check fails, the abort ends the started collectives.
///  5. The first error ends everything: it is published (aborts.h), and the others look for it while they wait; and the
///     process groups are aborted.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

// torch's headers last, because they define macros.
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "zeropage/comm/aborts.h"
#include "zeropage/comm/call.h"
#include "zeropage/comm/owner_process.h"

namespace zeropage::comm {

using ProcessGroupPtr = c10::intrusive_ptr<c10d::ProcessGroup>;
using C10dWorkPtr = c10::intrusive_ptr<c10d::Work>;
using StorePtr = c10::intrusive_ptr<c10d::Store>;

struct C10dStage {
  std::function<C10dWorkPtr()> start;
  std::function<void()> finish;  ///< may be empty
  bool on_stream = false;        ///< its completion orders the device's current stream and needs no wait here
};

struct C10dOperation {
  Call call;
  std::uint64_t sequence = 0;
  std::vector<C10dStage> stages;
  C10dStage check;  ///< runs in parallel to the stages; `start` is empty if there is none, or if it is the first stage
  std::size_t started = 0;  ///< submitted stages
  C10dWorkPtr check_work;   ///< until it has passed
  C10dWorkPtr work;         ///< of the last submitted stage, until it is complete
  bool complete = false;

  bool all_started() const { return started == stages.size(); }
};

/// Starts to gather every rank's `shard` into `whole`, by a name of the function that torch 2.11 knows, too.
C10dWorkPtr gather_into(const ProcessGroupPtr& group, at::Tensor whole, at::Tensor shard,
                        std::chrono::milliseconds timeout);

/// The message of the current exception, without torch's backtrace and gloo's source file.
std::string message_in_flight();

/// Whether such a message of torch or gloo is about a timeout.
bool is_timeout(const std::string& message);

class C10dQueue {
 public:
  /// aborts: shared with other communicators; null: those of the store of `control`.
  C10dQueue(ProcessGroupPtr data, ProcessGroupPtr control, std::chrono::milliseconds timeout,
            std::shared_ptr<Aborts> aborts);

  /// Adds `operation`, with a comparison with the peers' first if `check`, and submits what is possible. Does not
  /// block.
  /// Errors: PeerError after a failure, UsageError in a forked process.
  std::shared_ptr<C10dOperation> start(C10dOperation operation, bool check);

  /// True when `operation` is complete. Does not block. Errors: PeerError, TimeoutError.
  bool poll(C10dOperation& operation);

  /// Returns when `operation` is complete. Errors: PeerError, TimeoutError.
  void wait(C10dOperation& operation);

  /// Orders the device's current stream after `operation`, whose last stage is on a stream, without a wait for its
  /// check. Blocks only while earlier collectives in host memory are not submitted. Errors: PeerError, TimeoutError.
  void order_stream_after(C10dOperation& operation);

  /// Blocks until `ready`. Errors: PeerError, TimeoutError.
  void wait_until(const std::function<bool()>& ready, const std::string& what);

  /// From any thread. Errors: PeerError when this rank or a peer has aborted.
  void throw_if_aborted();

  /// Makes every current and future wait of every rank fail. Safe from any thread; the first reason counts.
  void abort(const std::string& reason);

 private:
  C10dStage make_check(const C10dOperation& operation);
  void publish_position(const C10dOperation& operation);
  void advance();
  bool collect(C10dOperation& operation, bool final_stage);
  bool passed(C10dOperation& operation);
  void block(C10dOperation& operation);
  void block(C10dOperation& operation, c10d::Work& work);
  void finish_stage(C10dOperation& operation);
  void throw_if_failed();
  void throw_if_aborted_by_peer();
  std::string positions(std::uint64_t sequence);
  [[noreturn]] void rethrow(const C10dOperation& operation);

  const ProcessGroupPtr data_;
  const ProcessGroupPtr control_;
  const StorePtr store_;                  ///< null when the process group has none
  const std::shared_ptr<Aborts> aborts_;  ///< null when there is no store
  const std::chrono::milliseconds timeout_;
  const int rank_;
  const int size_;
  const OwnerProcess owner_;

  std::deque<std::shared_ptr<C10dOperation>> pending_;  ///< with stages that are not submitted yet
  std::uint64_t next_sequence_ = 0;
  std::mutex failure_mutex_;
  std::string failure_;
};

}  // namespace zeropage::comm
