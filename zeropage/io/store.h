/// \file
/// State on disk, with checksums: extents that are read into and written from the store's own buffers, asynchronously.
///
///     Store store(options, {{"page 0", bytes}, {"page 1", bytes}});
///     auto reading = store.read(0, /*buffer=*/2);   // returns at once
///     store.wait(reading);                          // or an error that names "page 0", file and offset
///     ... change store.buffer(2) ...
///     store.wait(store.write(0, 2));
///     store.commit();                               // the writes become the active state; abandon() would discard
///                                                   them
///
/// Every extent has two slots. A write uses the inactive slot, and commit() makes all written slots the active ones at
/// once. Until then the previous state is complete, and abandon() returns to it. Reads return the last written bytes.
/// The checksum of every block is kept in memory and compared after every read. The files exist as long as the store
/// (job_files.h); nothing in them is needed after the process.
///
/// One thread at a time may use a store.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "zeropage/io/mover.h"
#include "zeropage/io/queue.h"

namespace zeropage::io {

struct StoreOptions {
  std::vector<std::string> folders;    ///< existing; blocks are dealt to them in turn
  std::string owner = "job";           ///< used in names and messages: "rank-3"
  std::int64_t block_bytes = 1 << 20;  ///< of one request; rounded up to kAlignment
  int queue_depth = 8;                 ///< running requests per folder
  int buffer_count = 4;
  std::int64_t buffer_bytes = 0;  ///< 0: the largest extent
  std::int64_t timeout_ms = 120'000;
  QueueKind queue = QueueKind::kAuto;
  QueueWrapper wrap_queue = {};  ///< for tests that inject faults
};

struct ExtentSpec {
  std::string name;  ///< for messages: "layers.0.weight ... layers.3.bias"
  std::int64_t bytes = 0;
  bool two_slots = true;  ///< false: half the space, and abandon() leaves nothing to read
};

class Store {
 public:
  using Ticket = std::shared_ptr<BufferTransfer>;

  /// Reserves the space of all extents, twice. Memory: the buffers, and 24 bytes per block and slot. Errors: IoError
  /// (folder, full disk with needed and free bytes), UsageError (no folder, an extent larger than a buffer).
  Store(StoreOptions options, std::vector<ExtentSpec> extents);
  ~Store();
  Store(const Store&) = delete;
  Store& operator=(const Store&) = delete;

  int buffer_count() const;
  /// Space for any extent. Its content is undefined during a read into it, and must not change during a write from it.
  std::span<std::byte> buffer(int index) const;

  /// Adds an extent and returns its index. Errors: as the constructor.
  int add(ExtentSpec extent);

  /// Whether anything was written to an extent and not discarded.
  bool readable(int extent) const;

  /// Starts to read the last written bytes of an extent into the front of a buffer. Errors: UsageError (nothing was
  /// written, or the write is still running).
  Ticket read(int extent, int buffer);

  /// Starts to write the front of a buffer to an extent's inactive slot. Errors: UsageError (an earlier write to it is
  /// still running).
  Ticket write(int extent, int buffer);

  /// Errors: IoError naming the extent, file and offset (EIO, a full disk, an early end, a wrong checksum),
  /// TimeoutError when the drive completed nothing during the timeout, Error after abort().
  void wait(const Ticket& ticket);

  /// Whether wait() would return or throw at once.
  bool finished(const Ticket& ticket) const;

  /// Makes everything written since the last commit the active state. Errors: UsageError when a write is still running
  /// or has failed; call abandon() after a failure.
  void commit();

  /// Discards everything written since the last commit, and waits for its running writes. Errors: TimeoutError, Error
  /// after abort().
  void abandon();

  /// Ends every wait with an Error with this reason. Any thread may call this.
  void abort(const std::string& reason);

  MoverStats stats() const;

  /// From now on the timeline records reads and writes.
  void observe(std::shared_ptr<Timeline> timeline) { mover_->observe(std::move(timeline)); }

  /// Bytes reserved in all folders.
  std::int64_t reserved_bytes() const;

  /// How requests reach the system: "io_uring, registered files and buffers".
  std::string how() const;

  /// Notes about unusual folders, one line each: "/tmp/...: tmpfs is memory, not a disk".
  std::vector<std::string> notes() const;

  /// Open descriptor of the file in a folder: for measurements, and for tests that damage it.
  int descriptor(int folder) const;

 private:
  struct Extent;
  struct Files;
  int place(ExtentSpec spec);
  void require_idle(const Extent& extent, const char* what) const;
  void check_arguments(int extent, int buffer) const;
  Ticket move(bool write, std::vector<Block>& blocks, const std::string& name, int buffer);

  StoreOptions options_;
  std::deque<Extent> extents_;      // transfers point into it
  std::vector<std::int64_t> ends_;  // per folder
  std::size_t next_folder_ = 0;
  std::shared_ptr<Files> files_;
  std::unique_ptr<Mover> mover_;
};

}  // namespace zeropage::io
