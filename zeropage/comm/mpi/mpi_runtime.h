/// \file
/// MPI in this process, and the one thread that calls it.
///
///  1. A thread of its own initialises MPI, makes every call of it, and finalises it. So any thread level that an MPI
///     provides will do, messages move on while the ranks compute, and no caller is ever caught inside MPI.
///  2. The thread runs tasks as they come and lets every poller make progress. While something is under way it naps for
///     a fraction of the time since the last progress (at most 1 ms), else for 10 ms at a time: peers' messages still
///     arrive, and it costs no measurable processor time.
///  3. At the end MPI is finalised if this object initialised it and all went well; as always with MPI, that waits for
///     the other ranks. After a failure it is not: the process ends without, so that mpirun ends the rest of the job.
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

/// Something that moves on by calls of MPI. The runtime's thread calls these functions, and no other.
class MpiPoller {
 public:
  enum class Progress { kIdle, kWaiting, kAdvanced, kEnded };  ///< kEnded: to be forgotten
  virtual ~MpiPoller() = default;
  virtual Progress progress() = 0;
  /// MPI ends, whatever is under way. True when it may be finalised.
  virtual bool end() = 0;
};

class MpiRuntime {
 public:
  /// Initialises MPI unless the program has. Keep the object until the end of main: MPI starts once per process.
  /// Collective in most implementations. Errors: UsageError (MPI was finalised; the program initialised it with less
  /// than MPI_THREAD_MULTIPLE, so that this object's thread may not call it), IoError (MPI's own words).
  static std::shared_ptr<MpiRuntime> start();
  ~MpiRuntime();
  MpiRuntime(const MpiRuntime&) = delete;
  MpiRuntime& operator=(const MpiRuntime&) = delete;

  /// Runs `task` on MPI's thread and returns when it has; rethrows what it throws.
  void call(std::function<void()> task);

  /// Lets `poller` make progress until it says that it has ended. Called by a task.
  void add(std::shared_ptr<MpiPoller> poller);

  /// Ends the nap: there is something to do.
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

  std::vector<std::shared_ptr<MpiPoller>> pollers_;  ///< the thread's own, as is what follows
  bool idle_ = true;
  bool owned_ = false;
  std::thread thread_;
};

/// Throws IoError with MPI's description of `code` unless it is MPI_SUCCESS.
void check_mpi(int code, std::string_view what);

}  // namespace zeropage::comm
