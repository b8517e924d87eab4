#include <execinfo.h>
#include <signal.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstdio>

#include "machine.h"
#include "pinned.h"

namespace simulated_device {
namespace {

struct sigaction former;

/// Whether the access wrote; if the processor does not tell, it counts as a write.
bool is_write(void* context) {
#ifdef __x86_64__
  return (static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_ERR] & 2) != 0;
#else
  return true;
#endif
}

void say_where(const void* address, int device) {
  char text[200];
  const int length = std::snprintf(
      text, sizeof text, "simulated device: the host touches memory of simulated:%d at %p\n", device, address);
  if (write(STDERR_FILENO, text, length) < 0) return;
  void* frames[64];
  backtrace_symbols_fd(frames, backtrace(frames, 64), STDERR_FILENO);
}

/// Faults are synchronous: the thread is in code that accessed the address, which is not in this library, so it holds
/// none of our locks.
void on_signal(int signal, siginfo_t* info, void* context) {
  auto& machine = Machine::get();
  if (machine.pinned().on_fault(info->si_addr, is_write(context))) return;
  for (int device = 0; device < kDevices; ++device) {
    if (machine.memory(device).contains(info->si_addr)) say_where(info->si_addr, device);
  }
  // The instruction runs again, and the previous handler gets the fault.
  sigaction(signal, &former, nullptr);
}

}  // namespace

void install_fault_handler() {
  struct sigaction action = {};
  action.sa_sigaction = on_signal;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  sigaction(SIGSEGV, &action, &former);
}

}  // namespace simulated_device
