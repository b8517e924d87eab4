#include "stream.h"

#include <random>
#include <thread>

namespace simulated_device {

void Point::reach() {
  const std::lock_guard lock(mutex_);
  reached_ = true;
  time_ = std::chrono::steady_clock::now();
  changed_.notify_all();
}

void Point::wait() const {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return reached_; });
}

bool Point::wait_for(std::chrono::milliseconds limit) const {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, limit, [&] { return reached_; });
}

bool Point::reached() const {
  const std::lock_guard lock(mutex_);
  return reached_;
}

std::chrono::steady_clock::time_point Point::time() const {
  const std::lock_guard lock(mutex_);
  return time_;
}

std::string Stream::name() const { return "stream " + std::to_string(id) + " of simulated:" + std::to_string(device); }

void Stream::set_delays(const Delays& delays) {
  const std::lock_guard lock(mutex_);
  delays_ = delays;
  seeded_ = false;
}

void Stream::push(std::function<void()> task) {
  if (queue_ != nullptr) return queue_->push(std::move(task));
  const std::lock_guard lock(mutex_);
  tasks_.push_back(std::move(task));
  filled_.notify_one();
  if (started_) return;
  started_ = true;
  // It ends with the process: tasks refer only to objects that exist until then.
  std::thread([this] { run(); }).detach();
}

void Stream::run() {
  std::mt19937_64 random;
  while (true) {
    std::function<void()> task;
    int max_us = 0;
    {
      std::unique_lock lock(mutex_);
      filled_.wait(lock, [&] { return !tasks_.empty(); });
      task = std::move(tasks_.front());
      tasks_.pop_front();
      if (!seeded_) random.seed(delays_.seed * 1000003 + static_cast<std::uint64_t>(device) * 4099 + id);
      seeded_ = true;
      max_us = delays_.max_us;
    }
    // Most tasks start at once; a long pause now and then lets the others overtake by many tasks.
    if (max_us > 0 && random() % 8 == 0) std::this_thread::sleep_for(std::chrono::microseconds(random() % max_us));
    task();
  }
}

}  // namespace simulated_device
