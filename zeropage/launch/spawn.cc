#include "zeropage/launch/spawn.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>
#include <vector>

#include "zeropage/base/error.h"

namespace zeropage::launch {
namespace {

/// The inherited environment, in which the plan's variables replace those of the same name.
std::vector<std::string> merged_environment(const RankPlan& plan) {
  std::vector<std::string> merged;
  for (char** entry = environ; *entry; ++entry) {
    const std::string text = *entry;
    const std::string name = text.substr(0, text.find('='));
    const bool replaced =
        std::any_of(plan.env.begin(), plan.env.end(), [&](const auto& variable) { return variable.first == name; });
    if (!replaced) merged.push_back(text);
  }
  for (const auto& [name, value] : plan.env) merged.push_back(name + "=" + value);
  return merged;
}

/// Null-terminated pointers into `strings`, for exec.
std::vector<char*> pointers(std::vector<std::string>& strings) {
  std::vector<char*> result;
  for (std::string& text : strings) result.push_back(text.data());
  result.push_back(nullptr);
  return result;
}

/// The cores as a bit set for the kernel, which has no fixed size; empty for none.
std::vector<unsigned long> bit_set(const std::vector<int>& cores) {
  constexpr int kBits = 8 * sizeof(unsigned long);
  std::vector<unsigned long> bits;
  for (int core : cores) {
    bits.resize(std::max(bits.size(), static_cast<std::size_t>(core / kBits + 1)));
    bits[core / kBits] |= 1UL << (core % kBits);
  }
  return bits;
}

/// Runs in the new process, so it must not call anything that could wait for a lock. Returns only on failure, with
/// errno set.
void become_rank(const SpawnContext& context, const std::vector<unsigned long>& core_bits, char* const* argv,
                 char* const* env, pid_t parent) {
  // The order matters: a parent that died before prctl sends no signal, but is no longer our parent either.
  if (::prctl(PR_SET_PDEATHSIG, SIGKILL) != 0) return;
  if (::getppid() != parent) ::_exit(1);
  ::setpgid(0, context.group);
  const auto* cores = reinterpret_cast<const cpu_set_t*>(core_bits.data());
  if (!core_bits.empty() && ::sched_setaffinity(0, core_bits.size() * sizeof(core_bits[0]), cores) != 0) return;
  if (::dup2(context.in_fd, 0) < 0 || ::dup2(context.out_fd, 1) < 0 || ::dup2(context.err_fd, 2) < 0) return;
  ::sigprocmask(SIG_SETMASK, &context.mask, nullptr);
  ::execvpe(argv[0], argv, env);
}

}  // namespace

pid_t spawn_rank(const RankPlan& plan, const SpawnContext& context) {
  std::vector<std::string> arguments = plan.argv;
  std::vector<std::string> environment = merged_environment(plan);
  const std::vector<char*> argv = pointers(arguments);
  const std::vector<char*> env = pointers(environment);
  const std::vector<unsigned long> core_bits = bit_set(plan.cores);
  Pipe failure = make_pipe();  // a successful exec closes it
  const pid_t parent = ::getpid();
  const pid_t pid = ::fork();
  if (pid < 0) throw_errno("cannot start another process", "raise the limit of processes (ulimit -u) or free memory");
  if (pid == 0) {
    become_rank(context, core_bits, argv.data(), env.data(), parent);
    const int reason = errno;
    (void)!::write(failure.write.get(), &reason, sizeof(reason));
    ::_exit(127);
  }
  failure.write.reset();
  int reason = 0;
  if (::read(failure.read.get(), &reason, sizeof(reason)) == sizeof(reason)) {
    ::waitpid(pid, nullptr, 0);
    throw IoError(fmt::format("cannot start {}: {}; it must be a program that may be executed here", plan.argv[0],
                              std::strerror(reason)));
  }
  return pid;
}

Pipe make_terminal(int like_fd, int margin_columns) {
  const std::string hint = "redirect the output to a file or a pipe";
  Pipe ends;
  ends.read.reset(::posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC));
  char name[128];
  if (!ends.read || ::grantpt(ends.read.get()) != 0 || ::unlockpt(ends.read.get()) != 0 ||
      ::ptsname_r(ends.read.get(), name, sizeof(name)) != 0) {
    throw_errno("cannot make a pseudo-terminal for rank 0", hint);
  }
  ends.write.reset(::open(name, O_RDWR | O_NOCTTY | O_CLOEXEC));
  termios mode{};
  if (!ends.write || ::tcgetattr(ends.write.get(), &mode) != 0) {
    throw_errno("cannot open the pseudo-terminal of rank 0", hint);
  }
  ::cfmakeraw(&mode);
  ::tcsetattr(ends.write.get(), TCSANOW, &mode);
  winsize size{};
  if (::ioctl(like_fd, TIOCGWINSZ, &size) == 0 && size.ws_col > margin_columns) {
    size.ws_col = static_cast<unsigned short>(size.ws_col - margin_columns);
    ::ioctl(ends.write.get(), TIOCSWINSZ, &size);
  }
  return ends;
}

}  // namespace zeropage::launch
