/// \file
/// Ends a run when the machine is preempted (zeropage.preemption_folder), for Python and C++ programs:
///
///  1. The handler of SIGTERM, on any rank, writes a byte into a pipe. The handler is C++, so it also runs while
///     Python's interpreter waits.
///  2. A thread reads the byte and asks the engine to stop. The global check of the next step informs all ranks.
///  3. After that step every rank saves. `Engine::step` throws Preempted in C++ and raises SystemExit(0) in Python.
///  4. A process that has not ended `grace_s` after the signal ends with exit code 75, after which launchers start the
///     job again. After a second SIGTERM it ends at once.
///  5. A forked child gets the earlier handler of the process back. So ending a child ends nothing else.
#pragma once

#include <functional>
#include <memory>

namespace zeropage::session {

/// Handles SIGTERM until it is destroyed. If there are several, the one that was made last gets the signal. A run that
/// has begun to end is watched until its end.
class Preemption {
 public:
  /// `request_stop` is called from a thread, at most once, and not after the destructor has returned. `grace_s` in
  /// seconds. Errors: IoError.
  Preemption(std::function<void()> request_stop, double grace_s);
  ~Preemption();
  Preemption(const Preemption&) = delete;
  Preemption& operator=(const Preemption&) = delete;

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace zeropage::session
