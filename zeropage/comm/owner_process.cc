#include "zeropage/comm/owner_process.h"

#include <fmt/format.h>
#include <unistd.h>

#include "zeropage/base/error.h"

namespace zeropage::comm {

OwnerProcess::OwnerProcess(int rank) : rank_(rank), pid_(::getpid()) {}

bool OwnerProcess::is_forked() const { return ::getpid() != pid_; }

void OwnerProcess::throw_if_forked() const {
  if (!is_forked()) return;
  throw UsageError(fmt::format(
      "this process (pid {}) is a fork of rank {} (pid {}) and takes no part in its job: use no engine and no "
      "sharded parameter in a forked process, or start it by \"spawn\"",
      ::getpid(), rank_, pid_));
}

}  // namespace zeropage::comm
