/// \file
/// Whether another process of this host is still alive, safe against reused process ids.
#pragma once

#include <cstdint>
#include <optional>

namespace zeropage::comm {

struct ProcessStatus {
  std::uint64_t start_time = 0;  ///< in ticks since boot; with the pid it identifies a process
  char state = '?';              ///< as in /proc/<pid>/stat: 'R' running, 'S' sleeping, 'T' stopped, 'Z' ended, ...
};

/// Reads /proc/<pid>/stat (about 10 us). Empty if there is no such process, or it has ended but is not reaped yet.
std::optional<ProcessStatus> process_status(std::int64_t pid);

/// True when the process `pid` that was started at `start_time` has not ended.
bool process_lives(std::int64_t pid, std::uint64_t start_time);

}  // namespace zeropage::comm
