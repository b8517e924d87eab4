/// \file
/// The thread of a mover (mover.h):
///
/// 1. It sleeps until there is a transfer, or a request under way.
/// 2. It fills the queue: rests of short requests first, then blocks of pending reads and writes in turns. They are
///    handed over, and what is being written is hashed meanwhile.
/// 3. It takes in results: a short one is asked for again from where it ended; a complete read is compared with its
///    checksum when the next requests have been handed over, so that the drive does not wait for it.
/// 4. The first error of a transfer is kept, and no further block of it handed over; it is finished when nothing of it
///    is under way.
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

/// Everything the thread touches. It owns itself together with its Mover, so that a drive that never answers costs a
/// thread and its memory, not the process.
class MoverThread {
 public:
  explicit MoverThread(Mover::Options options)
      : options_(std::move(options)), parts_(static_cast<std::size_t>(options_.queue.depth)) {
    for (std::size_t i = 0; i < parts_.size(); ++i) free_.push_back(i);
  }

  /// The thread's whole life. `ready` is set when the queue is there, or could not be made.
  void run(std::promise<void> ready);
  void start(std::shared_ptr<Transfer> transfer);
  void wait(const Transfer& transfer);
  void abort(const std::string& reason);
  bool finished(const Transfer& transfer) const {
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

  /// Waits, one timeout at most, until the thread has ended; whether it has.
  bool stop();

 private:
  /// A block that is under way.
  struct Part {
    std::shared_ptr<Transfer> transfer;
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

  const Mover::Options options_;
  std::unique_ptr<Queue> queue_;
  std::string description_;

  // The thread's own.
  std::vector<Part> parts_;
  std::vector<std::size_t> free_;
  std::vector<std::size_t> again_;  // parts whose rest must be asked for
  std::vector<Part> arrived_;       // reads that are not compared yet
  std::vector<Request> batch_;
  bool writes_next_ = false;

  mutable std::mutex mutex_;
  std::condition_variable work_;
  std::condition_variable progress_;
  std::deque<std::shared_ptr<Transfer>> pending_[2];  // reads, writes
  std::chrono::steady_clock::time_point last_progress_ = std::chrono::steady_clock::now();
  std::string abort_reason_;
  std::string broken_;
  bool stopping_ = false;
  bool ended_ = false;
  MoverStats stats_;
  std::shared_ptr<Timeline> timeline_;  // null: nobody looks
};

}  // namespace zeropage::io
