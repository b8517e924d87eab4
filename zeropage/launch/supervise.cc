/// How a job ends. The phases follow each other in this order, some are left out:
///
/// 1. Running: until a rank fails, all have ended, or the user sends a signal.
/// 2. Settling: a rank has failed. The others get a moment to fail by themselves, with their own words.
/// 3. Terminating: what still runs has been sent SIGTERM (or what the user sent) and has some seconds.
/// 4. Leftovers: all ranks have ended; what they started gets a moment to end too (trackers of shared memory, log
///    uploaders clean up when their parent is gone).
/// 5. Killing: every descendant is killed, again and again until there is none. A second signal of the user, or the death
///    of the front process, leads here at once.
///
/// Who failed first is decided by when a rank's traceback began, or when it ended if it wrote none: tearing down an
/// interpreter takes long enough for its peers to fail, and end, because of it.
#include "zeropage/launch/supervise.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <deque>
#include <optional>

#include "zeropage/base/error.h"
#include "zeropage/launch/console.h"
#include "zeropage/launch/lines.h"
#include "zeropage/launch/processes.h"
#include "zeropage/launch/spawn.h"

namespace zeropage::launch {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kSettle{500};
constexpr milliseconds kFailureGrace{3'000};
constexpr milliseconds kSignalGrace{30'000};  // a checkpoint may be under way
constexpr milliseconds kLeftoverGrace{1'000};
constexpr milliseconds kKillPatience{10'000};  // a process deep in a driver may not die at all
constexpr milliseconds kKillPeriod{10};
constexpr milliseconds kReaderPatience{1'000};

enum class Phase { kRunning, kSettling, kTerminating, kLeftovers, kKilling, kDone };

/// One output stream of one rank.
struct Source {
  Source(Stream where, bool log_progress) : stream(where), lines(log_progress) {}
  Stream stream;
  Fd fd;  ///< none: the rank writes to the launcher's own stream
  LineSplitter lines;
};

struct Rank {
  Rank(int number, const Console& console)
      : prefix(fmt::format("[rank {}] ", number)),
        out(Stream::kOut, !console.is_terminal(Stream::kOut)),
        err(Stream::kErr, !console.is_terminal(Stream::kErr)) {}
  std::string prefix;
  pid_t pid = -1;
  Source out;
  Source err;
  Tail tail;
  std::optional<int> failure;  ///< wait status, if it failed before anybody told it to end
  Time ended{};
};

std::string describe_status(int status) {
  if (WIFEXITED(status)) return fmt::format("exit code {}", WEXITSTATUS(status));
  const int signal = WTERMSIG(status);
  return fmt::format("signal {} (SIG{}){}", signal, ::sigabbrev_np(signal),
                     signal == SIGKILL ? "; the kernel does that when memory runs out: see dmesg" : "");
}

int exit_code_of(int status) { return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status); }

class Supervisor {
 public:
  Supervisor(const JobPlan& plan, const SuperviseOptions& options) : plan_(plan), options_(options), console_(1, 2) {}
  int run();

 private:
  void start_ranks();
  void start_rank(std::size_t number, const Fd& null);
  Pipe output_channel(const Rank& rank, Stream stream) const;
  void poll_once();
  int poll_timeout_ms() const;
  void read_control();
  void read_source(Rank& rank, Source& source);
  void collect_children();
  void rank_ended(Rank& rank, int status);
  void output_gone();
  void user_signal(int signal, bool delivered);
  void signal_ranks(int signal);
  void enter(Phase phase, milliseconds patience);
  void advance();
  void report();
  void flush();

  const JobPlan& plan_;
  const SuperviseOptions& options_;
  Console console_;
  std::deque<Rank> ranks_;
  Fd child_signals_;
  Phase phase_ = Phase::kRunning;
  Time deadline_{};
  int exit_code_ = 0;
  bool told_to_end_ = false;  ///< from now on a rank that ends is no failure of its own
  bool has_children_ = false;
  bool front_is_gone_ = false;
  bool ended_by_user_ = false;
};

int Supervisor::run() {
  sigset_t child;
  sigemptyset(&child);
  sigaddset(&child, SIGCHLD);
  child_signals_.reset(::signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!child_signals_) throw_errno("cannot watch the ranks", "raise the limit of open files (ulimit -n)");
  if (!options_.quiet) {
    for (const std::string& notice : plan_.notices) console_.notice(notice);
  }
  flush();  // a single rank writes to the same place by itself, and comes after
  start_ranks();
  while (phase_ != Phase::kDone) {
    poll_once();
    advance();
  }
  for (Rank& rank : ranks_) {
    for (Source* source : {&rank.out, &rank.err}) {
      while (source->fd && !front_is_gone_) read_source(rank, *source);
    }
  }
  report();
  flush();
  return exit_code_;
}

void Supervisor::start_ranks() {
  has_children_ = true;
  try {
    const Fd null(::open("/dev/null", O_RDONLY | O_CLOEXEC));
    if (!null) throw_errno("cannot open /dev/null", "check the container");
    for (std::size_t number = 0; number < plan_.ranks.size(); ++number) start_rank(number, null);
  } catch (const Error& error) {
    console_.notice(error.what());
    exit_code_ = 1;
    told_to_end_ = true;
    enter(Phase::kKilling, kKillPatience);
  }
}

void Supervisor::start_rank(std::size_t number, const Fd& null) {
  Rank& rank = ranks_.emplace_back(static_cast<int>(number), console_);
  SpawnContext context;
  context.group = options_.rank_group;
  context.mask = options_.rank_mask;
  if (number > 0) context.in_fd = null.get();
  Pipe out, err;
  // A single rank writes where the launcher would: nothing to tell apart.
  if (plan_.ranks.size() > 1) {
    out = output_channel(rank, Stream::kOut);
    err = output_channel(rank, Stream::kErr);
    context.out_fd = out.write.get();
    context.err_fd = err.write.get();
  }
  rank.pid = spawn_rank(plan_.ranks[number], context);
  rank.out.fd = std::move(out.read);
  rank.err.fd = std::move(err.read);
}

Pipe Supervisor::output_channel(const Rank& rank, Stream stream) const {
  const bool live = &rank == &ranks_.front() && console_.is_terminal(stream);
  Pipe channel =
      live ? make_terminal(stream == Stream::kOut ? 1 : 2, static_cast<int>(rank.prefix.size())) : make_pipe();
  ::fcntl(channel.read.get(), F_SETFL, O_NONBLOCK);
  return channel;
}

void Supervisor::poll_once() {
  std::vector<pollfd> fds = {{child_signals_.get(), POLLIN, 0},
                             {front_is_gone_ ? -1 : options_.control_fd, POLLIN, 0},
                             {console_.wanted_fd(), POLLOUT, 0}};
  std::vector<std::pair<Rank*, Source*>> sources;
  for (Rank& rank : ranks_) {
    for (Source* source : {&rank.out, &rank.err}) {
      if (!source->fd || console_.is_full()) continue;
      fds.push_back({source->fd.get(), POLLIN, 0});
      sources.emplace_back(&rank, source);
    }
  }
  if (::poll(fds.data(), fds.size(), poll_timeout_ms()) < 0) return;
  if (fds[1].revents) read_control();
  if (fds[2].revents && !console_.write_some()) output_gone();
  // Output before deaths: what a rank said last is known when its end is noticed.
  for (std::size_t i = 0; i < sources.size(); ++i) {
    if (fds[i + 3].revents) read_source(*sources[i].first, *sources[i].second);
  }
  if (fds[0].revents) {
    signalfd_siginfo info;
    while (::read(child_signals_.get(), &info, sizeof(info)) > 0) continue;
    collect_children();
  }
}

int Supervisor::poll_timeout_ms() const {
  if (phase_ == Phase::kRunning) return -1;
  if (phase_ == Phase::kKilling) return kKillPeriod.count();
  const auto left = std::chrono::ceil<milliseconds>(deadline_ - std::chrono::steady_clock::now());
  return static_cast<int>(std::max(left, milliseconds(0)).count());
}

void Supervisor::read_control() {
  unsigned char byte = 0;
  if (::read(options_.control_fd, &byte, 1) == 1) {
    user_signal(byte & ~kAlreadyDelivered, byte & kAlreadyDelivered);
    return;
  }
  front_is_gone_ = true;
  told_to_end_ = true;
  enter(Phase::kKilling, kKillPatience);
}

void Supervisor::read_source(Rank& rank, Source& source) {
  const Time now = std::chrono::steady_clock::now();
  const auto on_line = [&](std::string_view line) {
    console_.line(source.stream, rank.prefix, line, &rank == &ranks_.front());
    if (source.stream == Stream::kErr) rank.tail.add(line, now);
  };
  char buffer[64 * 1024];
  const ssize_t got = ::read(source.fd.get(), buffer, sizeof(buffer));
  if (got > 0) {
    source.lines.feed(std::string_view(buffer, static_cast<std::size_t>(got)), now, on_line);
  } else if (got == 0 || (errno != EAGAIN && errno != EINTR) || phase_ == Phase::kDone) {
    source.lines.finish(on_line);
    source.fd.reset();
  }
  if (&rank == &ranks_.front()) {
    const Source& shown = source.lines.unfinished().empty() ? (&source == &rank.out ? rank.err : rank.out) : source;
    console_.live(source.stream, rank.prefix, shown.lines.unfinished());
  }
}

void Supervisor::collect_children() {
  while (true) {
    int status = 0;
    const pid_t pid = ::waitpid(-1, &status, WNOHANG);
    if (pid < 0 && errno == EINTR) continue;
    has_children_ = pid >= 0;
    if (pid <= 0) return;
    for (Rank& rank : ranks_) {
      if (rank.pid == pid) rank_ended(rank, status);
    }
  }
}

void Supervisor::rank_ended(Rank& rank, int status) {
  rank.pid = -1;
  rank.ended = std::chrono::steady_clock::now();
  if (status == 0 || told_to_end_) return;
  rank.failure = status;
  if (phase_ == Phase::kRunning) enter(Phase::kSettling, kSettle);
}

void Supervisor::output_gone() {
  if (phase_ >= Phase::kTerminating) return;
  console_.notice("the reader of the output is gone; ending the ranks");
  exit_code_ = 128 + SIGPIPE;
  told_to_end_ = true;
  signal_ranks(SIGTERM);
  enter(Phase::kTerminating, kFailureGrace);
}

void Supervisor::user_signal(int signal, bool delivered) {
  if (signal == SIGUSR1 || signal == SIGUSR2) {
    if (!delivered) signal_ranks(signal);
    return;
  }
  if (phase_ == Phase::kKilling) return;
  if (told_to_end_) {
    console_.notice(fmt::format("SIG{} again: killing the ranks", ::sigabbrev_np(signal)));
    enter(Phase::kKilling, kKillPatience);
    return;
  }
  console_.notice(fmt::format("SIG{}: waiting up to {} s for the ranks to end (the same again kills them)",
                              ::sigabbrev_np(signal), kSignalGrace.count() / 1000));
  exit_code_ = 128 + signal;
  told_to_end_ = ended_by_user_ = true;
  if (!delivered) signal_ranks(signal);
  enter(Phase::kTerminating, kSignalGrace);
}

void Supervisor::signal_ranks(int signal) {
  for (const Rank& rank : ranks_) {
    if (rank.pid > 0) ::kill(rank.pid, signal);
  }
}

void Supervisor::enter(Phase phase, milliseconds patience) {
  phase_ = phase;
  deadline_ = std::chrono::steady_clock::now() + patience;
}

void Supervisor::advance() {
  const bool late = phase_ != Phase::kRunning && std::chrono::steady_clock::now() >= deadline_;
  if (phase_ < Phase::kLeftovers &&
      std::all_of(ranks_.begin(), ranks_.end(), [](const Rank& r) { return r.pid < 0; })) {
    told_to_end_ = true;
    enter(Phase::kLeftovers, kLeftoverGrace);
  }
  if (phase_ == Phase::kKilling) has_children_ = !kill_children();
  if (phase_ >= Phase::kLeftovers && !has_children_) phase_ = Phase::kDone;
  if (!late) return;
  if (phase_ == Phase::kSettling) {
    told_to_end_ = true;
    signal_ranks(SIGTERM);
    enter(Phase::kTerminating, kFailureGrace);
  } else if (phase_ == Phase::kTerminating) {
    console_.notice("some ranks did not end in time: killing them");
    enter(Phase::kKilling, kKillPatience);
  } else if (phase_ == Phase::kLeftovers) {
    console_.notice(fmt::format("ending {} process(es) that the ranks left behind", living_children().size()));
    enter(Phase::kKilling, kKillPatience);
  } else if (phase_ == Phase::kKilling) {
    console_.notice("some processes cannot be killed (waiting for a device or a file system?); leaving them");
    phase_ = Phase::kDone;
  }
}

void Supervisor::report() {
  const Rank* first = nullptr;
  const auto failed_at = [](const Rank& rank) {
    return std::min(rank.tail.traceback_time().value_or(rank.ended), rank.ended);
  };
  for (const Rank& rank : ranks_) {
    if (rank.failure && (!first || failed_at(rank) < failed_at(*first))) first = &rank;
  }
  if (!first) return;
  if (exit_code_ == 0) exit_code_ = exit_code_of(*first->failure);
  const long number =
      std::find_if(ranks_.begin(), ranks_.end(), [&](const Rank& r) { return &r == first; }) - ranks_.begin();
  const std::string what = describe_status(*first->failure);
  if (ranks_.size() == 1) {
    console_.notice(fmt::format("rank 0 failed with {}", what));
    return;
  }
  std::string words = first->tail.text();
  console_.notice(fmt::format("rank {} failed first, with {}. {}", number, what,
                              words.empty() ? "It wrote nothing to stderr." : "The end of its stderr:"));
  if (words.empty()) return;
  words.pop_back();  // line() adds it again
  console_.line(Stream::kErr, "", words);
}

void Supervisor::flush() {
  // A reader that has stopped may go on later, unless the user wants to be gone.
  const int patience_ms = ended_by_user_ ? static_cast<int>(kReaderPatience.count()) : -1;
  while (console_.wanted_fd() >= 0 && !front_is_gone_) {
    pollfd fds[] = {{console_.wanted_fd(), POLLOUT, 0}, {options_.control_fd, POLLIN, 0}};
    const int ready = ::poll(fds, 2, patience_ms);
    if (ready == 0 || fds[1].revents) return;
    if (ready > 0) console_.write_some();
  }
}

}  // namespace

int supervise(const JobPlan& plan, const SuperviseOptions& options) { return Supervisor(plan, options).run(); }

}  // namespace zeropage::launch
