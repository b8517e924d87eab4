/// \file
/// Transfers between buffers and the files, in blocks, and the thread that runs them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "zeropage/base/timeline.h"
#include "zeropage/io/arena.h"
#include "zeropage/io/queue.h"

namespace zeropage::io {

/// A part of a file, with the checksum (xxh3) of the bytes that were last written there.
struct Block {
  int file = 0;
  std::int64_t offset = 0;
  std::int64_t bytes = 0;  ///< a multiple of kAlignment
  std::uint64_t checksum = 0;
};

/// The blocks, one after the other, are the first bytes of the buffer.
struct BufferTransfer {
  bool write = false;
  int buffer = 0;
  std::string name;                      ///< the owner of the bytes, for messages
  std::vector<Block>* blocks = nullptr;  ///< a write sets the checksums, a read compares them; outlives the transfer

  // The mover's.
  std::size_t next = 0;       ///< the first block that is not in the queue yet
  std::size_t under_way = 0;  ///< blocks in the queue
  std::int64_t begin_ns = 0;  ///< when the first block was put into the queue
  std::int64_t next_offset = 0;
  bool finished = false;
  std::string error;  ///< a message, not an exception: each thread throws its own
};

/// Totals since the start.
struct MoverStats {
  std::int64_t read_bytes = 0;
  std::int64_t written_bytes = 0;
  double busy_s = 0.0;     ///< time with at least one request in the queue
  double waiting_s = 0.0;  ///< time in which a caller was in wait()

  MoverStats& operator+=(const MoverStats& other);
};

class MoverThread;

struct MoverOptions {
  QueueOptions queue;
  QueueWrapper wrap_queue = {};         ///< null: none
  std::vector<std::string> paths = {};  ///< of the files, for messages
  std::int64_t timeout_ms = 120'000;
  std::shared_ptr<void> keep;  ///< kept until the last request has completed: arena and files
};

/// Runs transfers on a thread of its own, which sleeps in a system call while the drive works. Pending reads and writes
/// alternate, block by block.
class Mover {
 public:
  /// Errors: those of make_queue.
  explicit Mover(MoverOptions options);

  /// Waits for the running requests. If this takes longer than the timeout, the thread continues alone and keeps the
  /// memory that it uses.
  ~Mover();
  Mover(const Mover&) = delete;
  Mover& operator=(const Mover&) = delete;

  /// Takes a transfer; returns at once.
  void start(std::shared_ptr<BufferTransfer> transfer);

  /// Returns when it is finished. Errors: IoError when the transfer failed; TimeoutError when nothing completed during
  /// the timeout; Error after abort().
  void wait(const std::shared_ptr<BufferTransfer>& transfer);

  /// Whether wait() would return or throw at once.
  bool finished(const std::shared_ptr<BufferTransfer>& transfer) const;

  /// Every wait, now and later, ends in an Error with this reason.
  void abort(const std::string& reason);

  MoverStats stats() const;
  std::string describe() const;

  /// From now on the timeline records every transfer.
  void observe(std::shared_ptr<Timeline> timeline);

 private:
  std::shared_ptr<MoverThread> thread_;
  std::thread handle_;
};

}  // namespace zeropage::io
