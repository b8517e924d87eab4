/// \file
/// A stream: a thread that runs tasks one after the other, some of them after a random delay. Points mark places in its
/// order.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "clock.h"

namespace simulated_device {

/// A place in a stream's order of tasks.
class Point {
 public:
  explicit Point(Clock clock) : clock(std::move(clock)) {}

  void reach();
  void wait() const;
  /// Whether it was reached within that time.
  bool wait_for(std::chrono::milliseconds limit) const;
  bool reached() const;
  std::chrono::steady_clock::time_point time() const;

  const Clock clock;  ///< what has happened when the point is reached

 private:
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  bool reached_ = false;
  std::chrono::steady_clock::time_point time_;
};

/// How often and how long tasks are delayed, from a seed.
struct Delays {
  std::uint64_t seed = 0;
  int max_us = 0;  ///< 0: never
};

class Stream {
 public:
  Stream(int device, int id, int actor) : device(device), id(id), actor(actor) {}

  /// Runs it after everything that was pushed before. The first push starts the thread.
  void push(std::function<void()> task);

  /// From now on its tasks run in another stream's thread, in the order in which both are given tasks. Before the first
  /// push.
  void share(Stream& queue) { queue_ = &queue; }

  void set_delays(const Delays& delays);
  std::string name() const;

  const int device;
  const int id;
  const int actor;

  // The rest is the machine's, under its lock.
  Clock clock;             ///< what has happened when everything pushed so far has run
  std::uint64_t tick = 0;  ///< of its last task

 private:
  void run();

  Stream* queue_ = nullptr;  // that runs the tasks, if it is another one
  std::mutex mutex_;
  std::condition_variable filled_;
  std::deque<std::function<void()>> tasks_;
  Delays delays_;
  bool seeded_ = false;
  bool started_ = false;
};

}  // namespace simulated_device
