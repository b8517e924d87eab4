#include "zeropage/launch/local_ranks.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "zeropage/launch/processes.h"
#include "zeropage/launch/system_call.h"

namespace zeropage::launch {
namespace {

using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

constexpr milliseconds kLeftoverGrace{1'000};
constexpr milliseconds kKillPatience{10'000};  // a process that is blocked in a driver may not die at all
constexpr milliseconds kKillPeriod{10};

}  // namespace

void LocalRanks::start(const std::vector<RankPlan>& ranks, RankWatcher& watcher) {
  watcher_ = &watcher;
  has_children_ = true;
  const Descriptor null(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  if (!null) throw_errno("cannot open /dev/null", "check the container");
  for (const RankPlan& plan : ranks) start_rank(plan, &plan == &ranks.front() ? context_.in_fd : null.get());
}

void LocalRanks::start_rank(const RankPlan& plan, int in_fd) {
  SpawnContext context = context_;
  context.in_fd = in_fd;
  Pipe out = output_channel_(plan, Stream::kOut);
  Pipe err = output_channel_(plan, Stream::kErr);
  if (out.write) context.out_fd = out.write.get();
  if (err.write) context.err_fd = err.write.get();
  running_.push_back({plan.rank, spawn_rank(plan, context)});
  for (auto [stream, pipe] : {std::pair(Stream::kOut, &out), std::pair(Stream::kErr, &err)}) {
    if (!pipe->read) continue;
    ::fcntl(pipe->read.get(), F_SETFL, O_NONBLOCK);
    outputs_.push_back({plan.rank, stream, std::move(pipe->read)});
  }
}

void LocalRanks::add_fds(std::vector<pollfd>& fds, bool read_output) {
  polled_.clear();
  for (Output& output : outputs_) {
    if (!output.fd || !read_output) continue;
    fds.push_back({output.fd.get(), POLLIN, 0});
    polled_.push_back(&output);
  }
}

void LocalRanks::serve(const pollfd* fds) {
  for (std::size_t i = 0; i < polled_.size(); ++i) {
    if (fds[i].revents) read_output(*polled_[i]);
  }
}

bool LocalRanks::read_output(Output& output) {
  char buffer[64 * 1024];
  const ssize_t got = ::read(output.fd.get(), buffer, sizeof(buffer));
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return false;
  // A pseudo-terminal ends with EIO.
  if (got <= 0) output.fd.reset();
  watcher_->on_output(output.rank, output.stream,
                      std::string_view(buffer, static_cast<std::size_t>(std::max<ssize_t>(got, 0))));
  return true;
}

void LocalRanks::drain() {
  for (Output& output : outputs_) {
    while (output.fd && read_output(output)) continue;
    // A process that could not be killed still has the other end open.
    if (output.fd) watcher_->on_output(output.rank, output.stream, {});
  }
  outputs_.clear();
}

void LocalRanks::collect() {
  while (true) {
    int status = 0;
    const pid_t pid = ::waitpid(-1, &status, WNOHANG);
    if (pid < 0 && errno == EINTR) continue;
    has_children_ = pid >= 0;
    if (pid <= 0) return;
    const auto child = std::find_if(running_.begin(), running_.end(), [&](const Child& c) { return c.pid == pid; });
    if (child == running_.end()) continue;
    const int rank = child->rank;
    running_.erase(child);
    watcher_->on_ended(rank, status);
  }
}

void LocalRanks::signal_ranks(int signal) {
  const bool ends = signal == SIGTERM || signal == SIGINT || signal == SIGHUP;
  for (const Child& child : running_) {
    ::kill(child.pid, signal);
    if (ends) ::kill(child.pid, SIGCONT);  // a stopped process handles no other signal before it continues
  }
}

void LocalRanks::kill() {
  if (phase_ < Phase::kKilling) enter(Phase::kKilling, Clock::now() + kKillPatience);
}

void LocalRanks::enter(Phase phase, Time deadline) {
  phase_ = phase;
  deadline_ = deadline;
}

Time LocalRanks::advance(Time now) {
  if (phase_ == Phase::kRunning && running_.empty() && watcher_) enter(Phase::kLeftovers, now + kLeftoverGrace);
  if (phase_ == Phase::kLeftovers && has_children_ && now >= deadline_) {
    watcher_->on_notice(fmt::format("ending {} process(es) that the ranks have started", living_children().size()));
    enter(Phase::kKilling, now + kKillPatience);
  }
  if (phase_ == Phase::kKilling) {
    has_children_ = !kill_children();
    if (has_children_ && now >= deadline_) {
      watcher_->on_notice("some processes cannot be killed (waiting for a device or a file system?); they remain");
      has_children_ = false;
    }
  }
  if (phase_ >= Phase::kLeftovers && !has_children_) enter(Phase::kGone, Time::max());
  return phase_ == Phase::kKilling ? now + kKillPeriod : deadline_;
}

}  // namespace zeropage::launch
