/// \file
/// The ranks of another host: an ssh connection, the agent at its remote end (agent.h), and frames between them
/// (wire.h).
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "zeropage/base/descriptor.h"
#include "zeropage/launch/agent.h"
#include "zeropage/launch/rank_host.h"
#include "zeropage/launch/spawn.h"
#include "zeropage/launch/wire.h"

namespace zeropage::launch {

/// A running ssh and our ends of its streams.
struct StartedSsh {
  pid_t pid;
  Descriptor in, out, err;
};

class RemoteHost : public RankHost {
 public:
  /// Starts `argv` (ssh), which runs the agent of `name`. Errors: IoError when it cannot be started.
  RemoteHost(std::string name, const std::vector<std::string>& argv, const SpawnContext& context);

  const std::string& name() const { return name_; }

  /// Sends the question. When the answer has arrived, `report` has it.
  void ask(const Question& question);
  const std::optional<HostReport>& report() const { return report_; }

  /// Why the host cannot be used any more, for people; empty: it can be used.
  const std::string& failure() const { return failure_; }

  void start(const std::vector<RankPlan>& ranks, RankWatcher& watcher) override;
  void add_fds(std::vector<pollfd>& fds, bool read_output) override;
  void serve(const pollfd* fds) override;
  void collect() override;
  void signal_ranks(int signal) override;
  void kill() override;
  Time advance(Time now) override;
  bool is_gone() const override { return pid_ < 0; }

 private:
  RemoteHost(std::string name, StartedSsh ssh);
  void on_frame(const Frame& frame);
  void read_errors();
  void lose(const std::string& why);
  std::string last_words() const;

  std::string name_;
  pid_t pid_ = -1;
  Channel channel_;
  Descriptor err_;
  LineSplitter err_lines_{false};
  Tail err_tail_;
  std::optional<HostReport> report_;
  std::string failure_;
  RankWatcher* watcher_ = nullptr;
  Time last_heard_;
  Time next_beat_;
  Time kill_deadline_ = Time::max();
  bool reads_ = true;  ///< whether the last add_fds included the agent's messages
  bool has_closed_ = false;
  bool is_done_ = false;  ///< the agent has sent kDone
  bool is_told_to_kill_ = false;
};

}  // namespace zeropage::launch
