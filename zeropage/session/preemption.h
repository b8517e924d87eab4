/// \file
/// Ending when the machine is taken away, as the Python package does (zeropage.preemption_folder):
///
///  1. SIGTERM, on any rank, becomes a byte in a pipe.
///  2. A thread reads it and asks the engine to stop. The global check of the next step tells all ranks.
///  3. After that step every rank saves and `Engine::step` throws Preempted, whose exit code is 0.
///  4. A process that is still there `grace_s` after the signal ends with exit code 75; at a second SIGTERM it ends at
///     once.
#pragma once

#include <functional>
#include <memory>

namespace zeropage::cpp {

/// Watches for SIGTERM until it goes. One at a time: of several the one made last gets the signal. A run that is being
/// ended stays watched to its end.
class Preemption {
 public:
  /// `request_stop` is called from a thread, once, and not after this has gone. Errors: IoError.
  Preemption(std::function<void()> request_stop, double grace_s);
  ~Preemption();
  Preemption(const Preemption&) = delete;

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace zeropage::cpp
