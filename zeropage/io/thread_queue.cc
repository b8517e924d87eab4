/// \file
/// The queue where io_uring is not permitted: threads that each run one request at a time.
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#include <fmt/format.h>

#include "zeropage/io/queue.h"

namespace zeropage::io {
namespace {

constexpr int kMaxThreads = 32;

class ThreadQueue : public Queue {
 public:
  ThreadQueue(const QueueOptions& options, std::string reason)
      : files_(options.files), reason_(std::move(reason)), threads_(std::min(options.depth, kMaxThreads)) {
    for (std::thread& thread : threads_) thread = std::thread([this] { work(); });
  }

  ~ThreadQueue() override {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wanted_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  void exchange(std::span<const Request> requests, std::vector<Completion>& done, std::int64_t timeout_ms) override {
    std::unique_lock lock(mutex_);
    requests_.insert(requests_.end(), requests.begin(), requests.end());
    if (requests.size() == 1) wanted_.notify_one();
    if (requests.size() > 1) wanted_.notify_all();
    completed_.wait_for(lock, std::chrono::milliseconds(timeout_ms), [&] { return !done_.empty(); });
    done.insert(done.end(), done_.begin(), done_.end());
    done_.clear();
  }

  std::string describe() const override {
    return fmt::format("{} threads of pread and pwrite{}", threads_.size(),
                       reason_.empty() ? "" : fmt::format(" ({})", reason_));
  }

 private:
  void work() {
    std::unique_lock lock(mutex_);
    for (;;) {
      wanted_.wait(lock, [&] { return stopping_ || !requests_.empty(); });
      if (requests_.empty()) return;
      const Request request = requests_.front();
      requests_.pop_front();
      lock.unlock();
      const Completion completion{request.tag, move(request)};
      lock.lock();
      done_.push_back(completion);
      completed_.notify_one();
    }
  }

  std::int64_t move(const Request& request) const {
    const auto bytes = static_cast<std::size_t>(request.bytes);
    const int file = files_[static_cast<std::size_t>(request.file)];
    const ssize_t moved = request.write ? ::pwrite(file, request.memory, bytes, request.offset)
                                        : ::pread(file, request.memory, bytes, request.offset);
    return moved < 0 ? -errno : moved;
  }

  const std::vector<int> files_;
  const std::string reason_;
  std::mutex mutex_;
  std::condition_variable wanted_;
  std::condition_variable completed_;
  std::deque<Request> requests_;
  std::vector<Completion> done_;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace

std::unique_ptr<Queue> make_thread_queue(const QueueOptions& options, const std::string& reason) {
  return std::make_unique<ThreadQueue>(options, reason);
}

}  // namespace zeropage::io
