#include "zeropage/session/preemption.h"

#include <fmt/format.h>
#include <poll.h>
#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "zeropage/base/error.h"
#include "zeropage/base/exit_code.h"
#include "zeropage/base/log.h"

namespace zeropage::session {
namespace {

constexpr char kTerminate = 't';
constexpr char kClose = 'c';

/// The pipe into which the handler writes. A signal handler can only use global variables.
std::atomic<int> signalled_pipe{-1};
std::atomic<pid_t> watched_pid{-1};  ///< children that are forked later inherit the pipe, and must not use it
struct sigaction handler_before {};  ///< valid while one is active; a fork reads it without a lock

struct Active {
  std::mutex mutex;
  std::vector<int> pipes;  ///< of all active objects, the oldest first
};

Active& active() {
  static auto* one = new Active;  // threads may use it until the process ends
  return *one;
}

void send(int pipe, char byte) {
  const int error = errno;
  if (::write(pipe, &byte, 1) < 0) {
    // The pipe is already full of signals.
  }
  errno = error;
}

extern "C" void zeropage_on_sigterm(int) {
  if (::getpid() != watched_pid) {  // a child that was forked without the functions of pthread_atfork
    ::signal(SIGTERM, SIG_DFL);
    ::raise(SIGTERM);  // this signal is delivered after this handler has returned
    return;
  }
  if (const int pipe = signalled_pipe; pipe >= 0) send(pipe, kTerminate);
}

bool handler_is_ours() {
  struct sigaction now {};
  return ::sigaction(SIGTERM, nullptr, &now) == 0 && now.sa_handler == &zeropage_on_sigterm;
}

extern "C" void zeropage_after_fork_in_child() {
  if (signalled_pipe < 0) return;
  signalled_pipe = -1;
  if (handler_is_ours()) ::sigaction(SIGTERM, &handler_before, nullptr);
}

void start_watching(int pipe) {
  static const int registered = ::pthread_atfork(nullptr, nullptr, &zeropage_after_fork_in_child);
  if (registered != 0) throw IoError(fmt::format("pthread_atfork: {}", std::strerror(registered)));
  Active& all = active();
  const std::scoped_lock lock(all.mutex);
  watched_pid = ::getpid();
  all.pipes.push_back(pipe);
  signalled_pipe = pipe;
  if (handler_is_ours()) return;
  struct sigaction handler {};
  handler.sa_handler = &zeropage_on_sigterm;
  handler.sa_flags = SA_RESTART;
  ::sigaction(SIGTERM, &handler, &handler_before);
}

void stop_watching(int pipe) {
  Active& all = active();
  const std::scoped_lock lock(all.mutex);
  std::erase(all.pipes, pipe);
  signalled_pipe = all.pipes.empty() ? -1 : all.pipes.back();
  // A handler that the program has installed later is kept.
  if (all.pipes.empty() && handler_is_ours()) ::sigaction(SIGTERM, &handler_before, nullptr);
}

}  // namespace

struct Preemption::State {
  State(std::function<void()> on_signal, double grace) : request_stop(std::move(on_signal)), grace_s(grace) {
    if (::pipe(ends) != 0) throw IoError(fmt::format("cannot make a pipe for SIGTERM: {}", std::strerror(errno)));
  }
  ~State() {
    ::close(ends[0]);
    ::close(ends[1]);
  }

  /// Returns the next byte, or 0 when none arrives in time. timeout_ms: -1 waits forever.
  char next(int timeout_ms) const {
    pollfd waiting{ends[0], POLLIN, 0};
    int ready = 0;
    while ((ready = ::poll(&waiting, 1, timeout_ms)) < 0 && errno == EINTR) {
    }
    char byte = 0;
    return ready > 0 && ::read(ends[0], &byte, 1) == 1 ? byte : char{0};
  }

  void watch() {
    if (next(-1) != kTerminate) return;
    {
      const std::scoped_lock lock(mutex);
      if (!request_stop) std::_Exit(128 + SIGTERM);  // there is nothing to save any more
      request_stop();
      stopping = true;
    }
    const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(grace_s);
    for (;;) {
      const std::chrono::duration<double, std::milli> left = end - std::chrono::steady_clock::now();
      const char byte = next(std::max(0, static_cast<int>(left.count())));
      if (byte == kTerminate) std::_Exit(128 + SIGTERM);
      if (byte == 0) break;
    }
    log_warn(fmt::format("not ended {:g} s after SIGTERM (zeropage.preemption_grace_s)", grace_s));
    std::_Exit(kRetryExitCode);
  }

  int ends[2] = {-1, -1};
  std::mutex mutex;
  std::function<void()> request_stop;
  bool stopping = false;
  const double grace_s;
};

Preemption::Preemption(std::function<void()> request_stop, double grace_s)
    : state_(std::make_shared<State>(std::move(request_stop), grace_s)) {
  start_watching(state_->ends[1]);
  std::thread([state = state_] { state->watch(); }).detach();
}

Preemption::~Preemption() {
  if (::getpid() != watched_pid) return;  // a forked child must not signal its parent's thread
  const std::scoped_lock lock(state_->mutex);
  state_->request_stop = nullptr;
  if (state_->stopping) return;  // the thread must still handle a second signal and the end of the grace period
  stop_watching(state_->ends[1]);
  send(state_->ends[1], kClose);
}

}  // namespace zeropage::session
