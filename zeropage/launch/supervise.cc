/// How a job ends, in these phases; some may be skipped:
///
/// 1. Running: until a rank fails, a host is lost, all have ended, or the user sends a signal.
/// 2. Settling: a rank has failed. The others get a moment to fail by themselves, with their own messages.
/// 3. Terminating: the running ranks were sent SIGTERM (or the user's signal) and have some seconds to end.
/// 4. Ending: all ranks have ended, or their time is over. Each host ends the remaining processes of the job
///    (local_ranks.h). A second signal of the user, or the death of the front process, starts this phase at once.
///
/// The rank that failed first is the one with the earliest traceback, or the earliest end if it wrote none: while the
/// interpreter of a failed rank ends, its peers may fail and end because of it. A lost host failed at the time of its
/// last message.
#include "zeropage/launch/supervise.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <deque>
#include <map>
#include <optional>

#include "zeropage/base/descriptor.h"
#include "zeropage/base/error.h"
#include "zeropage/base/exit_code.h"
#include "zeropage/launch/console.h"
#include "zeropage/launch/guard.h"
#include "zeropage/launch/local_ranks.h"
#include "zeropage/launch/processes.h"
#include "zeropage/launch/rank_log.h"
#include "zeropage/launch/system_call.h"

namespace zeropage::launch {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kSettle{500};
constexpr milliseconds kFailureGrace{3'000};
constexpr milliseconds kLostGrace{1'000};     // after kBeatPatience, and still within 5 s of the loss
constexpr milliseconds kSignalGrace{30'000};  // a checkpoint may be in progress
constexpr milliseconds kReaderPatience{1'000};

enum class Phase { kRunning, kSettling, kTerminating, kEnding };

std::string describe_status(int status) {
  if (WIFEXITED(status)) return fmt::format("exit code {}", WEXITSTATUS(status));
  const int signal = WTERMSIG(status);
  return fmt::format("signal {} (SIG{}){}", signal, ::sigabbrev_np(signal),
                     signal == SIGKILL ? "; the kernel does this when there is no memory left: see dmesg" : "");
}

int exit_code_of(int status) {
  if (WIFEXITED(status)) return WEXITSTATUS(status);
  return WTERMSIG(status) == SIGKILL ? kRetryExitCode : 128 + WTERMSIG(status);
}

/// The record of a lost host.
struct Loss {
  std::string why;
  Time time;
};

class Supervisor : public RankWatcher {
 public:
  Supervisor(std::vector<HostJob> jobs, const SuperviseOptions& options);
  int run();

  void on_output(int rank, Stream stream, std::string_view bytes) override;
  void on_ended(int rank, int status) override;
  void on_notice(std::string_view text) override { console_.notice(text); }
  void on_lost(const std::string& host, std::string_view why, Time time) override;

 private:
  std::unique_ptr<RankHost> make_local(const JobPlan& plan);
  void start_ranks();
  void poll_once();
  void read_control();
  void output_gone();
  void user_signal(int signal, bool delivered);
  void signal_ranks(int signal);
  void kill();
  void enter(Phase phase, milliseconds patience);
  void advance();
  void report();
  void report_rank(const RankLog& rank);
  void flush();

  std::vector<HostJob> jobs_;
  const SuperviseOptions& options_;
  Console console_;
  std::map<int, RankLog> ranks_;  ///< by number
  Descriptor child_signals_;
  Phase phase_ = Phase::kRunning;
  Time deadline_ = Time::max();
  Time next_ = Time::max();  ///< the time of the next work of a host
  LocalRanks* local_ = nullptr;
  std::optional<Loss> loss_;
  int exit_code_ = 0;
  bool told_to_end_ = false;  ///< from now on the end of a rank is not its own failure
  bool front_is_gone_ = false;
  bool ended_by_user_ = false;
  bool all_ended_well_ = true;  ///< whether all ranks that have ended succeeded
};

Supervisor::Supervisor(std::vector<HostJob> jobs, const SuperviseOptions& options)
    : jobs_(std::move(jobs)), options_(options), console_(1, 2) {
  const std::string started = time_stamp();
  for (HostJob& job : jobs_) {
    for (const RankPlan& plan : job.plan.ranks) {
      ranks_.try_emplace(plan.rank, plan, console_, options_.log_dir, started);
    }
    if (!job.host) job.host = make_local(job.plan);
  }
}

std::unique_ptr<RankHost> Supervisor::make_local(const JobPlan& plan) {
  SpawnContext context;
  context.group = options_.rank_group;
  context.mask = options_.rank_mask;
  // A single rank writes directly to the launcher's output, because its lines need no prefix.
  const bool direct = plan.ranks.size() == 1 && options_.log_dir.empty();
  const int first = plan.ranks.front().rank;
  auto local = std::make_unique<LocalRanks>(context, [this, direct, first](const RankPlan& rank, Stream stream) {
    if (direct) return Pipe();
    if (rank.rank != first || !console_.is_terminal(stream)) return make_pipe();
    return make_terminal(stream == Stream::kOut ? 1 : 2, static_cast<int>(ranks_.at(rank.rank).prefix.size()));
  });
  local_ = local.get();
  return local;
}

int Supervisor::run() {
  sigset_t child;
  sigemptyset(&child);
  sigaddset(&child, SIGCHLD);
  child_signals_.reset(::signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!child_signals_) throw_errno("cannot watch the ranks", "raise the limit of open files (ulimit -n)");
  for (const HostJob& job : jobs_) {
    if (options_.quiet) break;
    for (const std::string& notice : job.plan.notices) console_.notice(notice);
  }
  flush();  // a single rank writes to the same output by itself, after these lines
  start_ranks();
  advance();
  while (!std::all_of(jobs_.begin(), jobs_.end(), [](const HostJob& job) { return job.host->is_gone(); })) {
    poll_once();
    advance();
  }
  if (local_ && !front_is_gone_) local_->drain();
  report();
  flush();
  return exit_code_;
}

void Supervisor::start_ranks() {
  try {
    for (HostJob& job : jobs_) job.host->start(job.plan.ranks, *this);
  } catch (const Error& error) {
    console_.notice(error.what());
    exit_code_ = kIoExitCode;
    told_to_end_ = true;
    kill();
  }
}

void Supervisor::poll_once() {
  std::vector<pollfd> fds = {{child_signals_.get(), POLLIN, 0},
                             {front_is_gone_ ? -1 : options_.control_fd, POLLIN, 0},
                             {console_.wanted_fd(), POLLOUT, 0}};
  std::vector<std::size_t> firsts;
  for (const HostJob& job : jobs_) {
    firsts.push_back(fds.size());
    job.host->add_fds(fds, !console_.is_full());
  }
  const Time until = std::min(deadline_, next_);
  int timeout_ms = -1;
  if (until != Time::max()) {
    const auto left = std::chrono::ceil<milliseconds>(until - std::chrono::steady_clock::now());
    timeout_ms = static_cast<int>(std::max(left, milliseconds(0)).count());
  }
  if (::poll(fds.data(), fds.size(), timeout_ms) < 0) return;
  if (fds[1].revents) read_control();
  if (fds[2].revents && !console_.write_some()) output_gone();
  // Output is read before ends are handled, so that the last output of a rank is known when its end is found.
  for (std::size_t i = 0; i < jobs_.size(); ++i) jobs_[i].host->serve(fds.data() + firsts[i]);
  if (fds[0].revents) {
    signalfd_siginfo info;
    while (::read(child_signals_.get(), &info, sizeof(info)) > 0) continue;
    for (const HostJob& job : jobs_) job.host->collect();
  }
}

void Supervisor::read_control() {
  unsigned char byte = 0;
  if (::read(options_.control_fd, &byte, 1) == 1) {
    user_signal(byte & ~kAlreadyDelivered, byte & kAlreadyDelivered);
    return;
  }
  front_is_gone_ = true;
  told_to_end_ = true;
  kill();
}

void Supervisor::on_output(int rank, Stream stream, std::string_view bytes) {
  ranks_.at(rank).take(stream, bytes, std::chrono::steady_clock::now(), console_, rank == ranks_.begin()->first);
}

void Supervisor::on_ended(int number, int status) {
  RankLog& rank = ranks_.at(number);
  rank.has_ended = true;
  rank.ended = std::chrono::steady_clock::now();
  all_ended_well_ = all_ended_well_ && status == 0;
  if (status == 0 || told_to_end_) return;
  rank.failure = status;
  if (phase_ == Phase::kRunning) enter(Phase::kSettling, kSettle);
}

void Supervisor::on_lost(const std::string& host, std::string_view why, Time time) {
  for (auto& [number, rank] : ranks_) rank.has_ended = rank.has_ended || rank.host == host;
  if (!loss_ || time < loss_->time) loss_ = Loss{std::string(why), time};
  if (phase_ >= Phase::kTerminating) return;
  told_to_end_ = true;
  signal_ranks(SIGTERM);
  enter(Phase::kTerminating, kLostGrace);
}

void Supervisor::output_gone() {
  if (phase_ >= Phase::kTerminating) return;
  console_.notice("the reader of the output has closed it; ending the ranks");
  exit_code_ = 128 + SIGPIPE;
  told_to_end_ = true;
  signal_ranks(SIGTERM);
  enter(Phase::kTerminating, kFailureGrace);
}

void Supervisor::user_signal(int signal, bool delivered) {
  if (signal == SIGUSR1 || signal == SIGUSR2) {
    if (!delivered || !local_) signal_ranks(signal);
    return;
  }
  if (told_to_end_) {
    console_.notice(fmt::format("SIG{} again: killing the ranks", ::sigabbrev_np(signal)));
    kill();
    return;
  }
  console_.notice(fmt::format("SIG{}: waiting up to {} s for the ranks to end (the same again kills them)",
                              ::sigabbrev_np(signal), kSignalGrace.count() / 1000));
  exit_code_ = 128 + signal;
  told_to_end_ = ended_by_user_ = true;
  if (!delivered || !local_) signal_ranks(signal);
  enter(Phase::kTerminating, kSignalGrace);
}

void Supervisor::signal_ranks(int signal) {
  for (const HostJob& job : jobs_) job.host->signal_ranks(signal);
}

void Supervisor::kill() {
  all_ended_well_ = false;  // set here, because the report does not wait for the status of every killed rank
  phase_ = Phase::kEnding;
  deadline_ = Time::max();
  for (const HostJob& job : jobs_) job.host->kill();
}

void Supervisor::enter(Phase phase, milliseconds patience) {
  phase_ = phase;
  deadline_ = std::chrono::steady_clock::now() + patience;
}

void Supervisor::advance() {
  const Time now = std::chrono::steady_clock::now();
  next_ = Time::max();
  for (const HostJob& job : jobs_) next_ = std::min(next_, job.host->advance(now));
  if (phase_ < Phase::kEnding &&
      std::all_of(ranks_.begin(), ranks_.end(), [](const auto& rank) { return rank.second.has_ended; })) {
    told_to_end_ = true;
    phase_ = Phase::kEnding;
    deadline_ = Time::max();
  }
  if (now < deadline_) return;
  if (phase_ == Phase::kSettling) {
    told_to_end_ = true;
    signal_ranks(SIGTERM);
    enter(Phase::kTerminating, kFailureGrace);
  } else if (phase_ == Phase::kTerminating) {
    console_.notice("some ranks did not end in time: killing them");
    kill();
    next_ = now;
  }
}

void Supervisor::report() {
  // Ranks that save and end after SIGTERM have succeeded.
  if (exit_code_ == 128 + SIGTERM && ended_by_user_ && all_ended_well_ && !loss_) exit_code_ = 0;
  const RankLog* first = nullptr;
  for (const auto& [number, rank] : ranks_) {
    if (rank.failure && (!first || rank.failed_at() < first->failed_at())) first = &rank;
  }
  if (loss_ && !ended_by_user_ && (!first || loss_->time < first->failed_at())) {
    if (exit_code_ == 0) exit_code_ = kRetryExitCode;
    console_.notice(loss_->why);
    return;
  }
  if (!first) return;
  if (exit_code_ == 0) exit_code_ = exit_code_of(*first->failure);
  report_rank(*first);
}

void Supervisor::report_rank(const RankLog& rank) {
  const std::string who =
      rank.host.empty() ? fmt::format("rank {}", rank.number) : fmt::format("rank {} on {}", rank.number, rank.host);
  const std::string what = describe_status(*rank.failure);
  if (ranks_.size() == 1) {
    console_.notice(fmt::format("{} failed with {}", who, what));
    return;
  }
  std::string words = rank.tail.text();
  console_.notice(fmt::format("{} failed first, with {}. {}", who, what,
                              words.empty() ? "It wrote nothing to stderr." : "The end of its stderr:"));
  if (words.empty()) return;
  words.pop_back();  // line() adds it again
  console_.line(Stream::kErr, "", words);
}

void Supervisor::flush() {
  // A reader that has stopped may continue later, so this waits, except if the user has ended the job.
  const int patience_ms = ended_by_user_ ? static_cast<int>(kReaderPatience.count()) : -1;
  while (console_.wanted_fd() >= 0 && !front_is_gone_) {
    pollfd fds[] = {{console_.wanted_fd(), POLLOUT, 0}, {options_.control_fd, POLLIN, 0}};
    const int ready = ::poll(fds, 2, patience_ms);
    if (ready == 0 || fds[1].revents) return;
    if (ready > 0) console_.write_some();
  }
}

}  // namespace

int supervise(std::vector<HostJob> jobs, const SuperviseOptions& options) {
  return Supervisor(std::move(jobs), options).run();
}

}  // namespace zeropage::launch
