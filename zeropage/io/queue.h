/// \file
/// The interface between the store and the operating system: requests and their results. `make_queue` chooses io_uring,
/// or threads where the system does not permit it. Tests insert a queue that injects faults.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "zeropage/io/arena.h"

namespace zeropage::io {

/// One read or write of a part of a buffer.
struct Request {
  bool write = false;
  int file = 0;    ///< index into the files of the queue
  int buffer = 0;  ///< the arena's buffer that contains `memory`
  std::byte* memory = nullptr;
  std::int64_t offset = 0;  ///< in the file
  std::int64_t bytes = 0;
  std::uint64_t tag = 0;  ///< returned with the completion
};

struct Completion {
  std::uint64_t tag = 0;
  std::int64_t result = 0;  ///< bytes moved, perhaps fewer than asked for, or -errno
};

/// Only the thread that made a queue may use it.
class Queue {
 public:
  virtual ~Queue() = default;

  /// Starts `requests`, then waits until something completes, at most `timeout_ms`. Appends every result to `done`.
  /// This is one system call if the system supports it. At most `depth` requests may be running. Errors: IoError when
  /// the queue itself failed; the results of its requests are then unknown.
  virtual void exchange(std::span<const Request> requests, std::vector<Completion>& done, std::int64_t timeout_ms) = 0;

  /// A description of how requests reach the system, for people: "io_uring, registered files and buffers".
  virtual std::string describe() const = 0;
};

enum class QueueKind { kAuto, kUring, kThreads };

struct QueueOptions {
  QueueKind kind = QueueKind::kAuto;
  int depth = 16;               ///< requests that run at the same time
  std::vector<int> files = {};  ///< descriptors, open as long as the queue lives
  const Arena* arena = nullptr;
};

/// io_uring with registered files and, where the limit on locked memory allows it, registered buffers; for kAuto
/// threads where the system refuses io_uring (describe() contains the reason). Errors: IoError when kUring is requested
/// and refused.
std::unique_ptr<Queue> make_queue(const QueueOptions& options);

/// Wraps the queue of a store, for tests.
using QueueWrapper = std::function<std::unique_ptr<Queue>(std::unique_ptr<Queue>)>;

// make_queue chooses one of these.

/// Throws IoError with the reason when the system refuses.
std::unique_ptr<Queue> make_uring_queue(const QueueOptions& options);

/// `depth` threads (32 at most) of pread and pwrite. `reason`: why io_uring is not used; empty: threads were requested.
std::unique_ptr<Queue> make_thread_queue(const QueueOptions& options, const std::string& reason);

}  // namespace zeropage::io
