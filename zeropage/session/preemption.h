/// \file
/// Ending when the machine is taken away (zeropage.preemption_folder), for Python and C++ programs alike:
///
///  1. SIGTERM, on any rank, becomes a byte in a pipe. The handler is C++: it also runs while Python's interpreter
///     waits.
///  2. A thread reads it and asks the engine to stop. The global check of the next step tells all ranks.
///  3. After that step every rank saves. `Engine::step` throws Preempted in C++ and raises SystemExit(0) in Python.
///  4. A process that is still there `grace_s` after the signal ends with exit code 75, by which launchers start
///     again; at a second SIGTERM it ends at once.
///  5. A forked child gets the handler back that the process had before. So ending a child ends nothing else.
#pragma once

#include <functional>
#include <memory>

namespace zeropage::session {

/// Watches for SIGTERM until it is destroyed. Of several the one made last gets the signal. A run that is being ended
/// stays watched to its end.
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
