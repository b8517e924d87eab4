/// \file
/// The collectives over hosts, or over groups of ranks, that one rank has started, in order.
///
///  1. A collective is a list of stages. A stage is one or more collectives of one side (the communicator of this
///     rank's host or group, or the one between them) and a function for their results.
///  2. A stage starts when the previous stage of its collective is done and all stages of earlier collectives on that
///     side have started: all ranks of a communicator start the same collectives in the same order, no matter how often
///     each of them polls.
///  3. Stages start and end during this rank's starts, polls and waits on the same communicator.
///  4. A wait blocks in the oldest collective that is not complete. So the oldest one of all ranks always makes
///     progress.
///  5. The stages of a collective are checked (Communicator::set_checking) if checking was on when this rank started
///     the collective: the start of its stages depends on the rank, and a check needs all ranks.
///  6. On a device whose streams order collectives all stages start with the collective (group_device.h). Earlier
///     collectives in host memory, of which a step has none in flight, are waited for first: their stages start when
///     this rank polls.
///  7. The first error ends both sides, on all ranks: each rank with an error on one side aborts the other. With
///     `aborts` that does not depend on ranks between: all ranks see the first reason themselves.
#pragma once

#include <array>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "zeropage/comm/aborts.h"
#include "zeropage/comm/communicator.h"
#include "zeropage/comm/hosts/group_device.h"
#include "zeropage/comm/hosts/host_grid.h"

namespace zeropage::comm {

enum class Side : std::uint8_t { kInside, kBetween };

struct HostsStage {
  Side side = Side::kInside;
  std::function<void(Communicator& communicator, std::vector<WorkPtr>& works)> start;
  std::function<void()> finish;  ///< may be empty
};

struct HostsOperation {
  std::vector<HostsStage> stages = {};
  bool checked = true;
  std::size_t started = 0;
  std::vector<WorkPtr> works = {};  ///< of the last started stage, until it is done
  bool running = false;             ///< whether that stage is running
  bool complete = false;
  std::shared_ptr<OperationStream> stream = {};         ///< null: buffers are in host memory
  bool on_stream = false;                               ///< its stages need not be waited for on the host
  std::vector<std::pair<Side, WorkPtr>> compared = {};  ///< works on the stream, until their checks have passed
};

/// Which ranks of the job are on that side of `rank`, for messages. `unit`: "host" or "group".
std::string name_of_side(Side side, const HostGrid& grid, int rank, std::string_view unit);

/// What the communicator on that side of `rank` shares with the others of its job: see aborts_of_part.
inline std::shared_ptr<Aborts> aborts_of_side(const std::shared_ptr<Aborts>& job, Side side, const HostGrid& grid,
                                              int rank, std::string_view unit) {
  return aborts_of_part(job, name_of_side(side, grid, rank, unit));
}

class HostsQueue {
 public:
  /// `inside`: the ranks of this host or group. `between`: one rank of each. `unit`: "host" or "group", for messages.
  /// `aborts`: both sides were made with aborts_of_side of it; null: they abort each other only. `device`: for buffers
  /// in its memory; null: there are none.
  HostsQueue(std::shared_ptr<Communicator> inside, std::shared_ptr<Communicator> between, std::string_view unit,
             std::shared_ptr<Aborts> aborts, std::shared_ptr<GroupDevice> device = nullptr);

  HostGrid grid() const { return {between_->size(), inside_->size()}; }

  Communicator& at(Side side) const { return side == Side::kInside ? *inside_ : *between_; }

  /// Whether `buffer` is in a device's memory.
  bool is_on_device(const void* buffer) const { return device_ && device_->holds(buffer); }

  /// The kind of memory in which `buffer` is.
  std::shared_ptr<const SumMemory> memory_of(const void* buffer) const;

  /// Adds `operation` and starts what is possible. Does not block, except as in 6. The result must not outlive this
  /// queue. `buffer`: one of its buffers, which are all in the same kind of memory. Errors: those of the two
  /// communicators.
  WorkPtr start(HostsOperation operation, const void* buffer);

  /// True when `operation` is complete; then, on a device, the current stream comes after it. Does not block. Errors:
  /// PeerError, TimeoutError.
  bool poll(HostsOperation& operation);

  /// Returns when `operation`, and all that were started before it, are complete, or when the device's current stream
  /// comes after it. Errors: PeerError, TimeoutError.
  void wait(HostsOperation& operation);

  /// Returns when all are complete: before calls that do not go through this queue.
  void drain();

  /// Applies to collectives that are started from now on, and to calls that do not go through this queue.
  void set_checking(bool checking);

  /// Starts and ends stages as far as possible without blocking.
  void advance();

  /// Calls one side. An error aborts the other one, and its message names the failed side.
  template <typename Call>
  auto on(Side side, const Call& call) {
    try {
      return call(at(side));
    } catch (...) {
      rethrow(side);
    }
  }

  /// Errors: as Communicator::throw_if_aborted.
  void throw_if_aborted();

  /// `reason`: without this rank.
  void abort(std::string_view reason);

 private:
  void finish(HostsOperation& operation);
  void finish_unordered();
  void advance(HostsOperation& operation, const std::array<bool, 2>& may_start);
  bool works_done(HostsOperation& operation);
  bool checks_passed(HostsOperation& operation);
  [[noreturn]] void rethrow(Side side);

  const std::shared_ptr<Communicator> inside_;
  const std::shared_ptr<Communicator> between_;
  const std::shared_ptr<Aborts> aborts_;       // may be null
  const int rank_;                             // of the job
  const std::shared_ptr<GroupDevice> device_;  // may be null
  const std::array<std::string, 2> names_;
  bool checking_ = true;  // the initial value of both sides
  std::deque<std::shared_ptr<HostsOperation>> pending_;
};

}  // namespace zeropage::comm
