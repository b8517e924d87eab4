/// Two processes look after a job, so that each can clean up when the other dies:
///
/// 1. The front is what the user started. It keeps the process id the user knows, hands signals on, and waits.
/// 2. The supervisor, its child, starts the ranks and does all the work. It is in a process group of its own, so that the
///    terminal's keys do not reach it; the ranks are in the front's, so that they do reach them, and rank 0 can read the
///    terminal.
/// 3. Front to supervisor there is a pipe. If the front dies, however it dies, the pipe ends, and the supervisor kills
///    everything it started. Both adopt orphans: ranks cannot escape by starting sessions of their own.
/// 4. If the supervisor dies, the kernel kills the ranks (parent-death signal), and the front kills the rest.
#include "zeropage/launch/launch.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include "zeropage/base/error.h"
#include "zeropage/launch/cores.h"
#include "zeropage/launch/fd.h"
#include "zeropage/launch/host.h"
#include "zeropage/launch/plan.h"
#include "zeropage/launch/processes.h"
#include "zeropage/launch/supervise.h"

namespace zeropage::launch {
namespace {

constexpr int kForwardedSignals[] = {SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2};

void check_script(const Options& options) {
  if (options.module) return;
  if (options.no_python) {
    if (!find_program(options.script).empty()) return;
    throw ConfigError(
        fmt::format("--no_python {}: expected a program that may be executed; give its path, or make it "
                    "executable (chmod +x)",
                    options.script));
  }
  std::error_code error;
  if (std::filesystem::exists(options.script, error)) return;
  throw ConfigError(
      fmt::format("the script {} does not exist here; check its path (a module needs --module, a program "
                  "--no_python)",
                  options.script));
}

Host look_at_host(const Options& options, const std::string& argv0, const Port& port) {
  Host host;
  host.gpus = visible_gpus("/dev", std::getenv("CUDA_VISIBLE_DEVICES"));
  host.cores = allowed_cores();
  host.units = one_per_unit(host.cores, "/sys/devices/system/cpu");
  host.omp_threads_set = std::getenv("OMP_NUM_THREADS") != nullptr;
  if (!options.no_python) host.python = find_python(argv0);
  host.port = port.number;
  host.token = make_job_token();
  return host;
}

/// Descriptors 0, 1 and 2 exist from here on, so that no pipe of ours ends up as a rank's standard stream.
void open_standard_streams() {
  int fd = 0;
  while (fd >= 0 && fd <= 2) fd = ::open("/dev/null", O_RDWR | O_CLOEXEC);
  ::close(fd);
}

/// The signals to wait for: those to hand on, unless the user had them ignored (nohup), and SIGCHLD.
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
[[noreturn]] void be_supervisor(const JobPlan& plan, const Options& options, int control_fd,
                                const sigset_t& rank_mask) {
  int code = 1;
  try {
    SuperviseOptions supervise_options;
    supervise_options.control_fd = control_fd;
    supervise_options.rank_mask = rank_mask;
    supervise_options.rank_group = ::getpgrp();
    supervise_options.quiet = options.quiet;
    ::setpgid(0, 0);
    ::prctl(PR_SET_NAME, "zp-supervisor");  // so that `pkill -9 zeropage` leaves somebody to clean up
    // Blocked, a write to a closed pipe or from the terminal's background just returns.
    sigset_t writing;
    sigemptyset(&writing);
    sigaddset(&writing, SIGPIPE);
    sigaddset(&writing, SIGTTOU);
    ::sigprocmask(SIG_BLOCK, &writing, nullptr);
    adopt_orphans();
    code = supervise(plan, supervise_options);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "zeropage: %s\n", error.what());
    while (!kill_children()) ::usleep(10'000);
  }
  ::_exit(code);
}

/// The front process: hands signals on until the supervisor ends. Returns the job's exit code.
int wait_for_supervisor(pid_t supervisor, const Fd& control, const sigset_t& watched) {
  while (true) {
    siginfo_t info{};
    const int signal = ::sigwaitinfo(&watched, &info);
    if (signal > 0 && signal != SIGCHLD) {
      // What the terminal's driver sends goes to the whole group, the ranks included.
      const unsigned char byte =
          static_cast<unsigned char>(signal) | (info.si_code == SI_KERNEL ? kAlreadyDelivered : 0);
      (void)!::write(control.get(), &byte, 1);
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

}  // namespace

int launch(const Options& options, const std::string& argv0) {
  open_standard_streams();
  check_script(options);
  const Port port = claim_port(options.master_port);
  const JobPlan plan = plan_job(options, look_at_host(options, argv0, port));

  ::signal(SIGCHLD, SIG_DFL);  // whoever ignored it would hide the ranks' ends from us
  const sigset_t watched = watched_signals();
  sigset_t users;
  ::sigprocmask(SIG_BLOCK, &watched, &users);
  adopt_orphans();
  Pipe control = make_pipe();
  const pid_t supervisor = ::fork();
  if (supervisor < 0) throw_errno("cannot start another process", "raise the limit of processes (ulimit -u)");
  if (supervisor == 0) {
    control.write.reset();
    be_supervisor(plan, options, control.read.get(), users);
  }
  control.read.reset();
  return wait_for_supervisor(supervisor, control.write, watched);
}

}  // namespace zeropage::launch
