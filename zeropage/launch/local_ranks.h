/// \file
/// The ranks that this process starts itself, and all processes that they start.
///
/// 1. Running: until all ranks have ended, or `kill`.
/// 2. Leftovers: processes that the ranks started get a moment to end, too (trackers of shared memory and log uploaders
///    clean up after the end of their parent).
/// 3. Killing: all descendants are killed, repeatedly until there is none.
#pragma once

#include <deque>
#include <functional>
#include <optional>

#include "zeropage/launch/rank_host.h"
#include "zeropage/launch/spawn.h"
#include "zeropage/launch/system_call.h"

namespace zeropage::launch {

class LocalRanks : public RankHost {
 public:
  /// Makes the channel for the output of a rank. If it is empty, the rank writes to the descriptors of `context`.
  using OutputChannel = std::function<Pipe(const RankPlan& rank, Stream stream)>;

  /// `context`: the same for every rank. The first rank reads `context.in_fd`, the others have no input.
  LocalRanks(const SpawnContext& context, OutputChannel output_channel)
      : context_(context), output_channel_(std::move(output_channel)) {}

  void start(const std::vector<RankPlan>& ranks, RankWatcher& watcher) override;
  void add_fds(std::vector<pollfd>& fds, bool read_output) override;
  void serve(const pollfd* fds) override;
  void collect() override;
  void signal_ranks(int signal) override;
  void kill() override;
  Time advance(Time now) override;
  bool is_gone() const override { return phase_ == Phase::kGone; }

  /// Call after all processes have ended: passes on the bytes that are still in the pipes.
  void drain();

 private:
  enum class Phase { kRunning, kLeftovers, kKilling, kGone };
  struct Output {
    int rank;
    Stream stream;
    Descriptor fd;
  };
  struct Child {
    int rank;
    pid_t pid;
  };
  void start_rank(const RankPlan& plan, int in_fd);
  /// Returns false if there was nothing to read.
  bool read_output(Output& output);
  void enter(Phase phase, Time deadline);

  SpawnContext context_;
  OutputChannel output_channel_;
  RankWatcher* watcher_ = nullptr;
  std::deque<Output> outputs_;
  std::vector<Output*> polled_;
  std::vector<Child> running_;
  Phase phase_ = Phase::kRunning;
  Time deadline_ = Time::max();
  bool has_children_ = false;
};

}  // namespace zeropage::launch
