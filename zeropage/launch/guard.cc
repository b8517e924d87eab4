#include "zeropage/launch/guard.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>

#include "zeropage/base/error.h"
#include "zeropage/base/exit_code.h"
#include "zeropage/launch/processes.h"
#include "zeropage/launch/supervise.h"
#include "zeropage/launch/system_call.h"

namespace zeropage::launch {
namespace {

constexpr int kForwardedSignals[] = {SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2};

/// The signals to wait for: those to pass on, unless the user ignores them (nohup), and SIGCHLD.
sigset_t watched_signals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGCHLD);
  for (int signal : kForwardedSignals) {
    struct sigaction action {};
    ::sigaction(signal, nullptr, &action);
    if (action.sa_handler != SIG_IGN) sigaddset(&set, signal);
  }
  return set;
}

/// The supervisor process. Never returns.
[[noreturn]] void be_supervisor(const std::function<int(const GuardContext&)>& supervise, const GuardContext& context) {
  int code = 0;
  try {
    ::setpgid(0, 0);
    ::prctl(PR_SET_NAME, "zp-supervisor");  // so that `pkill -9 zeropage` does not kill the supervisor, which cleans up
    // If these signals are blocked, a write to a closed pipe or from the terminal's background only returns an error.
    sigset_t writing;
    sigemptyset(&writing);
    sigaddset(&writing, SIGPIPE);
    sigaddset(&writing, SIGTTOU);
    ::sigprocmask(SIG_BLOCK, &writing, nullptr);
    adopt_orphans();
    code = supervise(context);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "zeropage: %s\n", error.what());
    code = exit_code(error, kBugExitCode);
  }
  while (!kill_children()) ::usleep(10'000);
  ::_exit(code);
}

}  // namespace

Guard::Guard() : watched_(watched_signals()) {
  ::signal(SIGCHLD, SIG_DFL);  // if the parent had ignored it, the ends of ranks would not be reported
  ::sigprocmask(SIG_BLOCK, &watched_, &users_);
  adopt_orphans();
}

int Guard::run(const std::function<int(const GuardContext&)>& supervise) {
  Pipe control = make_pipe();
  const pid_t supervisor = ::fork();
  if (supervisor < 0) throw_errno("cannot start another process", "raise the limit of processes (ulimit -u)");
  if (supervisor == 0) {
    control.write.reset();
    be_supervisor(supervise, GuardContext{control.read.get(), users_, ::getpgrp()});
  }
  control.read.reset();
  return wait_for(supervisor, control.write.get());
}

int Guard::wait_for(pid_t supervisor, int control_fd) {
  while (true) {
    siginfo_t info{};
    const int signal = ::sigwaitinfo(&watched_, &info);
    if (signal > 0 && signal != SIGCHLD) {
      was_signalled_ = was_signalled_ || (signal != SIGUSR1 && signal != SIGUSR2);
      // Signals of the terminal are sent to the whole process group, including the ranks.
      const unsigned char byte =
          static_cast<unsigned char>(signal) | (info.si_code == SI_KERNEL ? kAlreadyDelivered : 0);
      (void)!::write(control_fd, &byte, 1);
      continue;
    }
    int status = 0;
    if (::waitpid(supervisor, &status, WNOHANG) != supervisor) continue;
    if (WIFEXITED(status)) return WEXITSTATUS(status);
    std::fprintf(stderr, "zeropage: the supervisor was killed by signal %d; killing the ranks\n", WTERMSIG(status));
    while (!kill_children()) ::usleep(10'000);
    return 128 + WTERMSIG(status);
  }
}

void open_standard_streams() {
  int fd = 0;
  while (fd >= 0 && fd <= 2) fd = ::open("/dev/null", O_RDWR | O_CLOEXEC);
  ::close(fd);
}

}  // namespace zeropage::launch
