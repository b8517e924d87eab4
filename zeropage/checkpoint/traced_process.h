/// \file
/// For tests: a child process that can be stopped before any of its system calls.
#pragma once

#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <functional>
#include <utility>

#include "zeropage/base/error.h"

namespace zeropage::checkpoint {

/// The child runs `work` in a process with one thread and ends; only the thread that made the object may use it.
class TracedProcess {
 public:
  explicit TracedProcess(const std::function<void()>& work) : pid_(fork()) {
    if (pid_ == 0) {
      if (ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0) _exit(kNotPermitted);
      raise(SIGSTOP);
      work();
      _exit(0);
    }
    wait();
    permitted_ = WIFSTOPPED(status_);
    if (!permitted_) return;
    // Stops at system calls are distinguished from signals. The child dies with this process.
    ptrace(PTRACE_SETOPTIONS, pid_, nullptr, PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL);
  }
  ~TracedProcess() { kill(); }
  TracedProcess(const TracedProcess&) = delete;

  /// Whether this system lets processes trace their children.
  bool permitted() const { return permitted_; }

  /// Runs up to the next system call for whose number `counts` is true, and stops before it is executed. False: the
  /// child has ended.
  bool run_to_call(const std::function<bool(long number)>& counts) {
    while (resume()) {
      const bool is_call = WSTOPSIG(status_) == (SIGTRAP | 0x80);
      entering_ = is_call && !entering_;
      if (is_call && entering_ && counts(number())) return true;
    }
    return false;
  }

  /// The child makes this call at the start of the part to test. Nothing else makes it.
  static constexpr long kBegin = SYS_getsid;

  /// Kills it with SIGKILL. The call before which it was stopped is not executed.
  void kill() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    while (pid_ > 0) wait();
  }

 private:
  static constexpr int kNotPermitted = 99;

  bool resume() {
    if (pid_ <= 0) return false;
    ptrace(PTRACE_SYSCALL, pid_, nullptr, nullptr);
    wait();
    return pid_ > 0;
  }

  void wait() {
    if (waitpid(pid_, &status_, 0) < 0 && errno == EINTR) return;
    if (!WIFSTOPPED(status_)) pid_ = -1;
  }

  long number() const {
    __ptrace_syscall_info info{};
    if (ptrace(PTRACE_GET_SYSCALL_INFO, pid_, sizeof(info), &info) < 0) throw IoError("ptrace");
    return static_cast<long>(info.entry.nr);
  }

  pid_t pid_;
  int status_ = 0;
  bool permitted_ = false;
  bool entering_ = false;
};

}  // namespace zeropage::checkpoint
