/// \file
/// The ranks of one host, as those who look after the job see them: here (local_ranks.h) or elsewhere (remote_host.h).
#pragma once

#include <poll.h>

#include <string>
#include <string_view>
#include <vector>

#include "zeropage/launch/console.h"
#include "zeropage/launch/job_plan.h"
#include "zeropage/launch/lines.h"

namespace zeropage::launch {

/// Is told what happens to ranks; they are named by their number in the job.
class RankWatcher {
 public:
  virtual ~RankWatcher() = default;
  /// Bytes of a rank's stream, as they came; none: the stream has ended.
  virtual void on_output(int rank, Stream stream, std::string_view bytes) = 0;
  /// A rank has ended with this status (of waitpid).
  virtual void on_ended(int rank, int status) = 0;
  /// A line for the user.
  virtual void on_notice(std::string_view text) = 0;
  /// `host` was last heard of at `time`, and with it went those of its ranks that had not ended.
  virtual void on_lost(const std::string& host, std::string_view why, Time time) = 0;
};

class RankHost {
 public:
  virtual ~RankHost() = default;

  /// Starts the ranks. Errors: IoError when one cannot be started; `kill` ends the others.
  virtual void start(const std::vector<RankPlan>& ranks, RankWatcher& watcher) = 0;

  /// Appends what to poll for. `read_output`: false while what came before is not written yet.
  virtual void add_fds(std::vector<pollfd>& fds, bool read_output) = 0;

  /// Reads and writes what is ready: `fds` are those that the last add_fds appended.
  virtual void serve(const pollfd* fds) = 0;

  /// Looks for ended children: SIGCHLD has come.
  virtual void collect() = 0;

  virtual void signal_ranks(int signal) = 0;

  /// From now on ends everything, whatever it takes.
  virtual void kill() = 0;

  /// Does what is due at `now`. The time of the next thing to do.
  virtual Time advance(Time now) = 0;

  /// Whether nothing of the job is left on the host.
  virtual bool is_gone() const = 0;
};

}  // namespace zeropage::launch
