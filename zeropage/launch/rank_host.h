/// \file
/// The interface to the ranks of one host: this one (local_ranks.h) or another one (remote_host.h).
#pragma once

#include <poll.h>

#include <string>
#include <string_view>
#include <vector>

#include "zeropage/launch/console.h"
#include "zeropage/launch/job_plan.h"
#include "zeropage/launch/lines.h"

namespace zeropage::launch {

/// Receives events of ranks. Ranks are identified by their number in the job.
class RankWatcher {
 public:
  virtual ~RankWatcher() = default;
  /// Bytes of a rank's stream; empty: the stream has ended.
  virtual void on_output(int rank, Stream stream, std::string_view bytes) = 0;
  /// A rank has ended with this status (of waitpid).
  virtual void on_ended(int rank, int status) = 0;
  /// A line for the user.
  virtual void on_notice(std::string_view text) = 0;
  /// `host` was lost, with all its ranks that had not ended. Its last message was at `time`.
  virtual void on_lost(const std::string& host, std::string_view why, Time time) = 0;
};

class RankHost {
 public:
  virtual ~RankHost() = default;

  /// Starts the ranks. Errors: IoError when one cannot be started; `kill` ends the others.
  virtual void start(const std::vector<RankPlan>& ranks, RankWatcher& watcher) = 0;

  /// Appends the descriptors to poll. `read_output`: false while earlier output is not written yet.
  virtual void add_fds(std::vector<pollfd>& fds, bool read_output) = 0;

  /// Reads and writes ready descriptors. `fds`: those that the last add_fds appended.
  virtual void serve(const pollfd* fds) = 0;

  /// Collects ended children; call it after SIGCHLD.
  virtual void collect() = 0;

  virtual void signal_ranks(int signal) = 0;

  /// From now on kills all processes of the job on this host.
  virtual void kill() = 0;

  /// Does the work that is due at `now`. Returns the time of the next work.
  virtual Time advance(Time now) = 0;

  /// Whether all processes of the job on this host have ended.
  virtual bool is_gone() const = 0;
};

}  // namespace zeropage::launch
