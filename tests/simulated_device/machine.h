/// \file
/// The simulated machine: devices with memory and streams, page-locked host memory, and knowledge about the order of
/// accesses.
///
///   1. launch() records which bytes a task reads and writes, compares them with earlier accesses (history.h), and
///      passes the task to its stream's thread. All knowledge is about launches, so the faults found do not depend on
///      when tasks run.
///   2. A stream knows its tasks, everything that the host knew at their launch, and everything that the events it
///      waited for knew.
///   3. The host knows what it has waited for. All host threads count as one: a wait of one counts for the others, too.
///      So races between two host threads are never reported.
///   4. The host's own accesses to page-locked memory are found by protecting it (pinned.h); device memory it cannot
///      touch at all.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "arena.h"
#include "history.h"
#include "pinned.h"
#include "stream.h"

namespace simulated_device {

inline constexpr int kDevices = 2;
inline constexpr int kStreamsInPool = 32;  // per device; stream 0 is the default one

/// A task's use of memory: `bytes` bytes of elements in a span that may have gaps.
struct Use {
  const void* data = nullptr;
  std::size_t span_bytes = 0;
  std::int64_t bytes = 0;
  bool writes = false;
};

struct Counters {
  std::int64_t tasks = 0;
  std::int64_t bytes_read = 0;     ///< of device memory, by tasks
  std::int64_t bytes_written = 0;  ///< of device memory, by tasks
  std::int64_t waits = 0;          ///< of the host, for a stream, an event or a device
  std::int64_t fetches = 0;        ///< copies to the host, or values read, that the host waited for
  std::int64_t uploads = 0;        ///< copies from the host that it waited for
  std::int64_t polled =
      0;  ///< times that the host asked whether something is done, and it was: one per wait that polls
};

using PointPtr = std::shared_ptr<const Point>;

class Machine {
 public:
  static Machine& get();

  Arena& memory(int device) { return *memory_[device]; }
  PinnedMemory& pinned() { return pinned_; }
  Stream& stream(int device, int id) { return *streams_[device][id]; }
  Stream& stream_of_pool(int device);

  /// The private address of memory of `device` or of page-locked memory; null for other addresses.
  void* inside(const void* address, int device);

  /// Gives a task to a stream. Errors in it are thrown by a later wait or rethrow.
  void launch(Stream& stream, const std::string& what, const std::vector<Use>& uses, std::function<void()> task);

  /// Gives a stream a task that does not end before let_go(), or before `limit` is over.
  void hold(Stream& stream, std::chrono::milliseconds limit);
  void let_go();

  PointPtr record(Stream& stream);
  void block(Stream& stream, const PointPtr& point);

  /// The host waits and knows more. `counter`: which of the counters it counts for.
  void wait(const PointPtr& point, std::int64_t Counters::*counter = &Counters::waits);
  bool query(const PointPtr& point);

  /// The host waits until it is reached, without learning anything: to simulate things for which a device needs no
  /// wait.
  void wait_unnoticed(const PointPtr& point);

  void synchronize(int device);

  /// Waits until nothing runs any more, without learning anything. For the end of a process.
  void drain();

  void forget(Span bytes);
  void set_delays(const Delays& delays);
  Counters counters();
  void reset_counters();

  /// Adds a fault to the list: a race, or memory freed too early.
  void report(const std::string& fault);

  /// All faults since the last call.
  std::vector<std::string> take_faults();

  /// Rethrows the exception of a task, if there is one. Errors: std::runtime_error.
  void rethrow();

 private:
  friend class PinnedMemory;
  Machine();

  const std::string* intern(const std::string& what);
  void note(Stream& stream, const std::string* what, const Use& use);
  PointPtr record_locked(Stream& stream);
  void learn(const Clock& clock);

  std::recursive_mutex mutex_;
  std::array<std::unique_ptr<Arena>, kDevices> memory_;
  std::array<std::array<std::unique_ptr<Stream>, kStreamsInPool + 1>, kDevices> streams_;
  std::array<int, kDevices> next_of_pool_{};
  PinnedMemory pinned_;
  History history_;
  Clock host_;
  std::set<std::string> names_;
  std::vector<std::string> faults_;
  std::vector<std::shared_ptr<Point>> held_;
  Counters counters_;

  std::mutex error_mutex_;
  std::string error_;
};

}  // namespace simulated_device
