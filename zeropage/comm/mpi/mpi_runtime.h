/// \file
/// MPI in this process, and the one thread that calls it.
///
///  1. A separate thread initialises MPI, makes every call of it, and finalises it. So every thread level of MPI is
///     sufficient, messages progress while the ranks compute, and no caller ever blocks inside MPI.
///  2. The thread runs tasks as they are added and lets every poller make progress. During operations it sleeps for a
///     fraction of the time since the last progress (at most 1 ms), otherwise for 10 ms at a time: peers' messages
///     still arrive, and the cost in processor time is not measurable.
///  3. At the end MPI is finalised if this object initialised it and there was no failure; as always with MPI, that
///     waits for the other ranks. After a failure it is not finalised, so that mpirun ends the rest of the job.
#pragma once

#include <condition_variable>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <string_view>
#include <thread>
#include <vector>

namespace zeropage::comm {

/// An object that makes progress by calls of MPI. Only the runtime's thread calls these functions.
class MpiPoller {
 public:
  enum class Progress { kIdle, kWaiting, kAdvanced, kEnded };  ///< kEnded: to be forgotten
  virtual ~MpiPoller() = default;
  virtual Progress progress() = 0;
  /// Ends the use of MPI, even during operations. True if it may be finalised.
  virtual bool end() = 0;
};

class MpiRuntime {
 public:
  /// Initialises MPI unless the program has. Keep the object until the end of main: MPI starts once per process.
  /// Collective in most implementations. Errors: UsageError (MPI was finalised; the program initialised it with less
  /// than MPI_THREAD_MULTIPLE, so this object's thread may not call it), IoError (with MPI's message).
  static std::shared_ptr<MpiRuntime> start();
  ~MpiRuntime();
  MpiRuntime(const MpiRuntime&) = delete;
  MpiRuntime& operator=(const MpiRuntime&) = delete;

  /// Runs `task` on MPI's thread and waits for it; rethrows its exception.
  void call(std::function<void()> task);

  /// Lets `poller` make progress until it has ended. Called by a task.
  void add(std::shared_ptr<MpiPoller> poller);

  /// Wakes the thread, because there is something to do.
  void wake();

 private:
  MpiRuntime();
  void run();
  bool step();
  void end();

  std::mutex mutex_;
  std::condition_variable wake_;
  bool awake_ = false;
  bool stop_ = false;
  std::vector<std::packaged_task<void()>> tasks_;

  std::vector<std::shared_ptr<MpiPoller>> pollers_;  ///< used only by the thread, like the following members
  bool idle_ = true;
  bool owned_ = false;
  std::thread thread_;
};

/// Throws IoError with MPI's description of `code` unless it is MPI_SUCCESS.
void check_mpi(int code, std::string_view what);

}  // namespace zeropage::comm
