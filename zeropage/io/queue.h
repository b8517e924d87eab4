/// \file
/// Requests to the system and their results: the seam under the store. `make_queue` picks io_uring, or threads where
/// the system does not permit it; tests put a queue with faults between the two.
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
  int buffer = 0;  ///< the arena's buffer that `memory` lies in
  std::byte* memory = nullptr;
  std::int64_t offset = 0;  ///< in the file
  std::int64_t bytes = 0;
  std::uint64_t tag = 0;  ///< comes back with the completion
};

struct Completion {
  std::uint64_t tag = 0;
  std::int64_t result = 0;  ///< bytes moved, perhaps fewer than asked for, or -errno
};

/// One thread drives a queue: the one that made it.
class Queue {
 public:
  virtual ~Queue() = default;

  /// Hands over `requests`, then waits until something completes, `timeout_ms` at most; appends every result to `done`.
  /// One system call where the system can. At most the depth of the queue may be under way. Errors: IoError when the
  /// queue itself failed; what became of its requests is then unknown.
  virtual void exchange(std::span<const Request> requests, std::vector<Completion>& done, std::int64_t timeout_ms) = 0;

  /// How requests reach the system, for people: "io_uring, registered files and buffers".
  virtual std::string describe() const = 0;
};

enum class QueueKind { kAuto, kUring, kThreads };

struct QueueOptions {
  QueueKind kind = QueueKind::kAuto;
  int depth = 16;               ///< requests under way
  std::vector<int> files = {};  ///< descriptors, open as long as the queue lives
  const Arena* arena = nullptr;
};

/// io_uring with registered files and, where the limit on locked memory allows it, registered buffers; for kAuto
/// threads where the system refuses io_uring, which describe() then says. Errors: IoError when kUring is asked for and
/// refused.
std::unique_ptr<Queue> make_queue(const QueueOptions& options);

/// Puts something between the store and its queue.
using QueueWrapper = std::function<std::unique_ptr<Queue>(std::unique_ptr<Queue>)>;

// What make_queue chooses from.

/// Throws IoError with the reason when the system refuses.
std::unique_ptr<Queue> make_uring_queue(const QueueOptions& options);

/// `depth` threads (32 at most) of pread and pwrite. `reason`: why not io_uring; empty: chosen.
std::unique_ptr<Queue> make_thread_queue(const QueueOptions& options, const std::string& reason);

}  // namespace zeropage::io
