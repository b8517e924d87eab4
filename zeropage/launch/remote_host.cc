#include "zeropage/launch/remote_host.h"

#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>

#include "zeropage/base/error.h"
#include "zeropage/launch/system_call.h"

namespace zeropage::launch {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kRemoteKillPatience{2'000};

StartedSsh start_ssh(const std::vector<std::string>& argv, SpawnContext context) {
  Pipe in = make_pipe(), out = make_pipe(), err = make_pipe();
  context.in_fd = in.read.get();
  context.out_fd = out.write.get();
  context.err_fd = err.write.get();
  RankPlan plan;
  plan.argv = argv;
  const pid_t pid = spawn_rank(plan, context);
  return {pid, std::move(in.write), std::move(out.read), std::move(err.read)};
}

}  // namespace

RemoteHost::RemoteHost(std::string name, const std::vector<std::string>& argv, const SpawnContext& context)
    : RemoteHost(std::move(name), start_ssh(argv, context)) {}

RemoteHost::RemoteHost(std::string name, StartedSsh started)
    : name_(std::move(name)),
      pid_(started.pid),
      channel_(std::move(started.out), std::move(started.in), true),
      err_(std::move(started.err)),
      last_heard_(Clock::now()),
      next_beat_(last_heard_) {}

void RemoteHost::ask(const Question& question) { channel_.send(FrameKind::kAsk, 0, encode(question)); }

void RemoteHost::start(const std::vector<RankPlan>& ranks, RankWatcher& watcher) {
  watcher_ = &watcher;
  last_heard_ = Clock::now();
  channel_.send(FrameKind::kStart, 0, encode(ranks));
}

void RemoteHost::add_fds(std::vector<pollfd>& fds, bool read_output) {
  reads_ = read_output && !has_closed_;
  fds.push_back({reads_ ? channel_.in_fd() : -1, POLLIN, 0});
  fds.push_back({channel_.wants_write() ? channel_.out_fd() : -1, POLLOUT, 0});
  fds.push_back({err_.get(), POLLIN, 0});
}

void RemoteHost::serve(const pollfd* fds) {
  if (fds[2].revents) read_errors();
  if (fds[1].revents) channel_.write_some();
  if (!fds[0].revents) return;
  try {
    has_closed_ = !channel_.read_some([this](const Frame& frame) { on_frame(frame); });
  } catch (const IoError& error) {
    has_closed_ = true;
    lose(error.what());
    ::kill(pid_, SIGKILL);
  }
}

void RemoteHost::on_frame(const Frame& frame) {
  last_heard_ = Clock::now();
  if (frame.kind == FrameKind::kReport && !report_) {
    report_ = decode_report(frame.payload);
  } else if (frame.kind == FrameKind::kDone) {
    is_done_ = true;
  } else if (!watcher_ || !failure_.empty()) {
    return;
  } else if (frame.kind == FrameKind::kNotice) {
    watcher_->on_notice(fmt::format("{}: {}", name_, frame.payload));
  } else if (frame.kind == FrameKind::kOut || frame.kind == FrameKind::kErr) {
    watcher_->on_output(frame.number, frame.kind == FrameKind::kErr ? Stream::kErr : Stream::kOut, frame.payload);
  } else if (frame.kind == FrameKind::kEnded) {
    int status = 0;
    std::from_chars(frame.payload.data(), frame.payload.data() + frame.payload.size(), status);
    watcher_->on_ended(frame.number, status);
  }
}

void RemoteHost::read_errors() {
  const auto on_line = [this](std::string_view line) {
    err_tail_.add(line, Clock::now());
    if (watcher_) watcher_->on_notice(fmt::format("{}: {}", name_, line));
  };
  char buffer[4096];
  const ssize_t got = ::read(err_.get(), buffer, sizeof(buffer));
  if (got > 0) {
    err_lines_.feed(std::string_view(buffer, static_cast<std::size_t>(got)), Clock::now(), on_line);
  } else {
    err_lines_.finish(on_line);
    err_.reset();
  }
}

void RemoteHost::collect() {
  int status = 0;
  if (pid_ < 0 || ::waitpid(pid_, &status, WNOHANG) != pid_) return;
  pid_ = -1;
  // The last messages are still in the pipes.
  while (err_) {
    pollfd fd{err_.get(), POLLIN, 0};
    if (::poll(&fd, 1, 0) <= 0) break;  // another process has the other end open
    read_errors();
  }
  while (!has_closed_ && ::poll(std::vector<pollfd>{{channel_.in_fd(), POLLIN, 0}}.data(), 1, 0) > 0) {
    const pollfd ready[3] = {{channel_.in_fd(), POLLIN, POLLIN}, {-1, 0, 0}, {-1, 0, 0}};
    serve(ready);
  }
  if (is_done_ || is_told_to_kill_) return;
  lose(fmt::format(
      "ssh ended with {}{}",
      WIFEXITED(status) ? fmt::format("exit code {}", WEXITSTATUS(status)) : fmt::format("signal {}", WTERMSIG(status)),
      last_words()));
}

std::string RemoteHost::last_words() const {
  std::string words = err_tail_.text() + (report_ ? "" : channel_.preamble());
  while (!words.empty() && (words.back() == '\n' || words.back() == '\r')) words.pop_back();
  return words.empty() ? "" : ": " + words;
}

void RemoteHost::lose(const std::string& why) {
  if (!failure_.empty() || is_done_) return;
  failure_ = why;
  if (watcher_) watcher_->on_lost(name_, fmt::format("host {} was lost: {}", name_, why), last_heard_);
}

void RemoteHost::signal_ranks(int signal) { channel_.send(FrameKind::kSignal, signal); }

void RemoteHost::kill() {
  if (is_told_to_kill_) return;
  is_told_to_kill_ = true;
  channel_.send(FrameKind::kKill);
  kill_deadline_ = Clock::now() + kRemoteKillPatience;
}

Time RemoteHost::advance(Time now) {
  if (is_gone()) return Time::max();
  if (now >= next_beat_) {
    if (!channel_.is_full()) channel_.send(FrameKind::kBeat);
    next_beat_ = now + kBeatPeriod;
  }
  if (!reads_) last_heard_ = now;  // it may have sent messages that we have not read
  const bool is_silent = watcher_ && !is_done_ && now - last_heard_ > kBeatPatience;
  if (is_silent)
    lose(fmt::format("no message arrived for {} ms; are the host and the network working?", kBeatPatience.count()));
  // An agent without a connection ends its processes by itself.
  if (!failure_.empty() || now >= kill_deadline_) ::kill(pid_, SIGKILL);
  return std::min(next_beat_, kill_deadline_);
}

}  // namespace zeropage::launch
