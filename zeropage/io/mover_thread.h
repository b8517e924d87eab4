/// \file
/// The thread of a mover (mover.h):
///
/// 1. It sleeps until there is a transfer, or a running request.
/// 2. It fills the queue: first the rests of short requests, then blocks of pending reads and writes in turns. While
///    the drive works on them, it hashes the blocks that are being written.
/// 3. It handles results. After a short result it requests the rest. It compares a complete read with its checksum
///    after the next requests are in the queue, so that the drive does not wait for this.
/// 4. It keeps the first error of a transfer, and then starts no further block of it. The transfer is finished when
///    none of its requests is running.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <future>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "zeropage/io/mover.h"

namespace zeropage::io {

/// Everything that the thread uses. The thread and its Mover share its ownership. So a drive that never answers costs a
/// thread and its memory, and the process continues.
class MoverThread {
 public:
  explicit MoverThread(MoverOptions options)
      : options_(std::move(options)), parts_(static_cast<std::size_t>(options_.queue.depth)) {
    for (std::size_t i = 0; i < parts_.size(); ++i) free_.push_back(i);
  }

  /// The thread's function. `ready` is set when the queue was made, or could not be made.
  void run(std::promise<void> ready);
  void start(std::shared_ptr<BufferTransfer> transfer);
  void wait(const BufferTransfer& transfer);
  void abort(const std::string& reason);
  bool finished(const BufferTransfer& transfer) const {
    const std::lock_guard lock(mutex_);
    return transfer.finished;
  }
  MoverStats stats() const {
    const std::lock_guard lock(mutex_);
    return stats_;
  }
  std::string describe() const { return description_; }
  void observe(std::shared_ptr<Timeline> timeline) {
    const std::lock_guard lock(mutex_);
    timeline_ = std::move(timeline);
  }

  /// Waits at most one timeout until the thread has ended. Returns whether it has.
  bool stop();

 private:
  /// A block that is in the queue.
  struct Part {
    std::shared_ptr<BufferTransfer> transfer;
    Block* block = nullptr;
    std::byte* memory = nullptr;
    std::int64_t moved = 0;
    int attempts = 0;
  };

  bool collect();
  void request_rest(std::size_t index);
  void hash_writes();
  void check_reads();
  void handle(const Completion& completion);
  bool advance(Part& part, std::int64_t result);
  void finish(const Part& part, const std::string& error);
  void fail_everything(const std::string& error);
  std::string message(const Part& part, const std::string& what) const;
  [[noreturn]] void fail(const Part& part, const std::string& what) const;
  [[noreturn]] void fail_of_system(const Part& part, int error) const;

  const MoverOptions options_;
  std::unique_ptr<Queue> queue_;
  std::string description_;

  // Only the thread uses these.
  std::vector<Part> parts_;
  std::vector<std::size_t> free_;
  std::vector<std::size_t> again_;     // parts whose rest must be requested
  std::vector<Part> unchecked_reads_;  // reads that are not compared yet
  std::vector<Request> batch_;
  bool writes_next_ = false;

  mutable std::mutex mutex_;
  std::condition_variable work_;
  std::condition_variable progress_;
  std::deque<std::shared_ptr<BufferTransfer>> pending_[2];  // reads, writes
  std::chrono::steady_clock::time_point last_progress_ = std::chrono::steady_clock::now();
  std::string abort_reason_;
  std::string broken_;
  bool stopping_ = false;
  bool ended_ = false;
  MoverStats stats_;
  std::shared_ptr<Timeline> timeline_;  // null: nobody looks
};

}  // namespace zeropage::io
