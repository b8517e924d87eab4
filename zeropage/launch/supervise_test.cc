// How a job ends, with hosts that have no processes: each follows a script, and the supervisor cannot tell the
// difference.
#include "zeropage/launch/supervise.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "zeropage/base/error.h"
#include "zeropage/base/exit_code.h"

namespace zeropage::launch {
namespace {

using std::chrono::milliseconds;

constexpr int kKilled = SIGKILL;  // the status of waitpid for a process that this signal ended

int exited(int code) { return code << 8; }

/// What a host was told, in order, and what its ranks do.
class ScriptedHost : public RankHost {
 public:
  using Action = std::function<void(ScriptedHost&)>;
  struct Event {
    milliseconds after;  ///< since the start; in order
    Action action;
  };

  ScriptedHost(std::deque<Event> script, Action on_signal, std::vector<std::string>& told)
      : script_(std::move(script)), on_signal_(std::move(on_signal)), told_(told) {}

  void start(const std::vector<RankPlan>& ranks, RankWatcher& watcher) override {
    watcher_ = &watcher;
    started_ = std::chrono::steady_clock::now();
    for (const RankPlan& rank : ranks) running_.insert(rank.rank);
  }
  void add_fds(std::vector<pollfd>&, bool) override {}
  void serve(const pollfd*) override {}
  void collect() override {}
  void signal_ranks(int signal) override {
    told_.push_back(std::string("SIG") + ::sigabbrev_np(signal));
    if (on_signal_) on_signal_(*this);
  }
  void kill() override {
    told_.push_back("kill");
    running_.clear();
  }
  Time advance(Time now) override {
    while (!script_.empty() && !running_.empty() && started_ + script_.front().after <= now) {
      const Action action = std::move(script_.front().action);
      script_.pop_front();
      action(*this);
    }
    return script_.empty() ? Time::max() : started_ + script_.front().after;
  }
  bool is_gone() const override { return running_.empty(); }

  void end(int rank, int status) {
    running_.erase(rank);
    watcher_->on_ended(rank, status);
  }
  void end_all(int status) {
    while (!running_.empty()) end(*running_.begin(), status);
  }
  void write_error(int rank, std::string_view text) { watcher_->on_output(rank, Stream::kErr, text); }
  void lose(const std::string& name, const std::string& why, milliseconds last_message) {
    running_.clear();
    watcher_->on_lost(name, why, started_ + last_message);
  }

 private:
  std::deque<Event> script_;
  Action on_signal_;
  std::vector<std::string>& told_;
  RankWatcher* watcher_ = nullptr;
  Time started_{};
  std::set<int> running_;
};

/// A job of one or more scripted hosts, and the pipe of the front process.
class Supervise : public testing::Test {
 protected:
  Supervise() { EXPECT_EQ(::pipe(control_), 0); }
  ~Supervise() override {
    ::close(control_[0]);
    if (control_[1] >= 0) ::close(control_[1]);
  }

  /// Adds a host with `ranks` more ranks.
  void add_host(const std::string& name, int ranks, std::deque<ScriptedHost::Event> script,
                ScriptedHost::Action on_signal = {}) {
    put_host(name, ranks, std::make_unique<ScriptedHost>(std::move(script), std::move(on_signal), told_));
  }
  void put_host(const std::string& name, int ranks, std::unique_ptr<RankHost> host) {
    HostJob job;
    job.host = std::move(host);
    for (int i = 0; i < ranks; ++i) {
      RankPlan plan;
      plan.rank = next_rank_++;
      plan.host = name;
      job.plan.ranks.push_back(plan);
    }
    jobs_.push_back(std::move(job));
  }

  /// Sends a signal of the user, as the front process does.
  ScriptedHost::Action user_sends(int signal) {
    return [this, signal](ScriptedHost&) {
      const auto byte = static_cast<unsigned char>(signal);
      EXPECT_EQ(::write(control_[1], &byte, 1), 1);
    };
  }
  ScriptedHost::Action front_dies() {
    return [this](ScriptedHost&) { ::close(std::exchange(control_[1], -1)); };
  }

  /// The job's exit code. Its stderr is in `errors_`.
  int run() {
    SuperviseOptions options;
    options.control_fd = control_[0];
    testing::internal::CaptureStderr();
    const int code = supervise(std::move(jobs_), options);
    errors_ = testing::internal::GetCapturedStderr();
    return code;
  }

  bool says(std::string_view text) const { return errors_.find(text) != std::string::npos; }

  int control_[2];
  int next_rank_ = 0;
  std::vector<HostJob> jobs_;
  std::vector<std::string> told_;
  std::string errors_;
};

using Told = std::vector<std::string>;

ScriptedHost::Action ends(int rank, int status) {
  return [=](ScriptedHost& host) { host.end(rank, status); };
}

ScriptedHost::Action all_end(int status) {
  return [=](ScriptedHost& host) { host.end_all(status); };
}

// Catches a job that signals ranks that have ended well, or whose code is not 0.
TEST_F(Supervise, RanksThatSucceedAreNotSignalled) {
  add_host("", 2, {{milliseconds(0), ends(0, 0)}, {milliseconds(20), ends(1, 0)}});
  EXPECT_EQ(run(), 0);
  EXPECT_EQ(told_, Told{});
  EXPECT_EQ(errors_, "");
}

// Catches a report of the rank that ended first: it ended because of its peer, which was still printing its traceback.
TEST_F(Supervise, TheEarliestTracebackNamesTheRankThatFailedFirst) {
  add_host(
      "", 2,
      {{milliseconds(0),
        [](ScriptedHost& host) { host.write_error(1, "Traceback (most recent call last):\nValueError: the cause\n"); }},
       {milliseconds(20), ends(0, exited(3))},
       {milliseconds(40), ends(1, exited(7))}});
  EXPECT_EQ(run(), 7);
  EXPECT_TRUE(says("rank 1 failed first, with exit code 7. The end of its stderr:")) << errors_;
}

// Catches a job that waits for the peers of a rank that was killed, and a code that does not say that a retry may help.
TEST_F(Supervise, ARankThatTheKernelKilledEndsTheOthers) {
  add_host("", 2, {{milliseconds(0), ends(1, kKilled)}}, all_end(exited(1)));
  EXPECT_EQ(run(), kRetryExitCode);
  EXPECT_EQ(told_, Told{"SIGTERM"});
  EXPECT_TRUE(says("rank 1 failed first, with signal 9 (SIGKILL); the kernel does this")) << errors_;
}

// Catches a lost host whose peers wait for ever, also those that ignore SIGTERM.
TEST_F(Supervise, ALostHostEndsTheOthersInTime) {
  add_host("a", 1, {});
  add_host("b", 1, {{milliseconds(0), [](ScriptedHost& host) { host.lose("b", "b was lost", milliseconds(0)); }}});
  EXPECT_EQ(run(), kRetryExitCode);
  EXPECT_EQ(told_, (Told{"SIGTERM", "SIGTERM", "kill", "kill"}));
  EXPECT_TRUE(says("b was lost")) << errors_;
  EXPECT_TRUE(says("some ranks did not end in time: killing them")) << errors_;
}

// Catches a loss that hides the failure that caused it.
TEST_F(Supervise, AFailureBeforeALossIsTheReason) {
  add_host("a", 1, {{milliseconds(0), ends(0, exited(5))}});
  add_host("b", 1,
           {{milliseconds(50), [](ScriptedHost& host) { host.lose("b", "b was lost", milliseconds(60'000)); }}});
  EXPECT_EQ(run(), 5);
  EXPECT_TRUE(says("rank 0 on a failed first, with exit code 5. It wrote nothing to stderr.")) << errors_;
  EXPECT_FALSE(says("b was lost")) << errors_;
}

// Catches a preempted job that saved a checkpoint and counts as failed.
TEST_F(Supervise, RanksThatEndWellAfterSigtermAreASuccess) {
  add_host("", 2, {{milliseconds(0), user_sends(SIGTERM)}, {milliseconds(20'000), all_end(exited(9))}}, all_end(0));
  EXPECT_EQ(run(), 0);
  EXPECT_EQ(told_, Told{"SIGTERM"});
}

// Catches a rank whose checkpoint failed after SIGTERM and whose job counts as a success.
TEST_F(Supervise, ARankThatFailsAfterSigtermIsNoSuccess) {
  add_host("", 2, {{milliseconds(0), user_sends(SIGTERM)}, {milliseconds(20'000), all_end(exited(9))}},
           [](ScriptedHost& host) {
             host.end(0, 0);
             host.end(1, exited(1));
           });
  EXPECT_EQ(run(), 128 + SIGTERM);
}

// Catches a user who cannot end ranks that hang.
TEST_F(Supervise, ASecondSignalKills) {
  add_host("", 2, {{milliseconds(0), user_sends(SIGINT)}, {milliseconds(30), user_sends(SIGINT)}});
  EXPECT_EQ(run(), 128 + SIGINT);
  EXPECT_EQ(told_, (Told{"SIGINT", "kill"}));
  EXPECT_TRUE(says("SIGINT again: killing the ranks")) << errors_;
}

// Catches signals for the program (a stack dump, a save) that end the job instead.
TEST_F(Supervise, SignalsOfTheProgramReachTheRanksOnly) {
  add_host("", 2, {{milliseconds(0), user_sends(SIGUSR1)}, {milliseconds(20'000), all_end(exited(9))}}, all_end(0));
  EXPECT_EQ(run(), 0);
  EXPECT_EQ(told_, Told{"SIGUSR1"});
}

// Catches ranks that stay when the launcher's front process was killed.
TEST_F(Supervise, TheDeathOfTheFrontKillsTheRanks) {
  add_host("", 2, {{milliseconds(0), front_dies()}});
  run();
  EXPECT_EQ(told_, Told{"kill"});
}

class HostThatCannotStart : public ScriptedHost {
 public:
  using ScriptedHost::ScriptedHost;
  void start(const std::vector<RankPlan>& ranks, RankWatcher& watcher) override {
    ScriptedHost::start(ranks, watcher);
    throw IoError("cannot start rank 1");
  }
};

// Catches ranks that stay when another rank could not be started.
TEST_F(Supervise, ARankThatCannotBeStartedEndsTheJob) {
  put_host("", 2, std::make_unique<HostThatCannotStart>(std::deque<ScriptedHost::Event>{}, nullptr, told_));
  EXPECT_EQ(run(), kIoExitCode);
  EXPECT_EQ(told_, Told{"kill"});
  EXPECT_TRUE(says("cannot start rank 1")) << errors_;
}

}  // namespace
}  // namespace zeropage::launch
