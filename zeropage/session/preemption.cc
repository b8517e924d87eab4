#include "zeropage/cpp/preemption.h"

#include <fmt/format.h>
#include <poll.h>
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

#include "zeropage/base/error.h"
#include "zeropage/base/exit_code.h"
#include "zeropage/base/log.h"

namespace zeropage::cpp {
namespace {

constexpr char kTerminate = 't';
constexpr char kClose = 'c';

/// Where the handler writes. A signal handler has nothing but what is global.
std::atomic<int> signalled_pipe{-1};
std::atomic<pid_t> watched_pid{-1};  ///< a child that was forked since has the pipe and the handler, and is not meant

void send(int pipe, char byte) {
  const int error = errno;
  if (::write(pipe, &byte, 1) < 0) {
    // The pipe is full of signals already.
  }
  errno = error;
}

extern "C" void zeropage_on_sigterm(int) {
  if (::getpid() != watched_pid) {
    ::signal(SIGTERM, SIG_DFL);
    ::raise(SIGTERM);  // comes when this handler has returned
    return;
  }
  if (const int pipe = signalled_pipe; pipe >= 0) send(pipe, kTerminate);
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

  /// The next byte; 0 when there is none in time. timeout_ms: -1 for ever.
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
      if (!request_stop) std::_Exit(128 + SIGTERM);  // nothing is left that could be saved
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
  int pipe_before = -1;
  struct sigaction handler_before {};
};

Preemption::Preemption(std::function<void()> request_stop, double grace_s)
    : state_(std::make_shared<State>(std::move(request_stop), grace_s)) {
  watched_pid = ::getpid();
  state_->pipe_before = signalled_pipe.exchange(state_->ends[1]);
  struct sigaction handler {};
  handler.sa_handler = &zeropage_on_sigterm;
  handler.sa_flags = SA_RESTART;
  ::sigaction(SIGTERM, &handler, &state_->handler_before);
  std::thread([state = state_] { state->watch(); }).detach();
}

Preemption::~Preemption() {
  if (::getpid() != watched_pid) return;  // a forked child says nothing to its parent's thread
  const std::scoped_lock lock(state_->mutex);
  state_->request_stop = nullptr;
  if (state_->stopping) return;  // a second signal, and the end of the grace, still find the thread
  ::sigaction(SIGTERM, &state_->handler_before, nullptr);
  signalled_pipe = state_->pipe_before;
  send(state_->ends[1], kClose);
}

}  // namespace zeropage::cpp
