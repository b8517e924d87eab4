/// \file
/// Vector clocks. An actor is a stream, or the host; it counts its actions. A clock has, for every actor, the number of
/// actions that happened before some moment.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace simulated_device {

class Clock {
 public:
  /// Adds everything that happened before `other`.
  void join(const Clock& other) {
    if (ticks_.size() < other.ticks_.size()) ticks_.resize(other.ticks_.size());
    for (std::size_t i = 0; i < other.ticks_.size(); ++i) ticks_[i] = std::max(ticks_[i], other.ticks_[i]);
  }

  void set(int actor, std::uint64_t tick) {
    if (ticks_.size() <= static_cast<std::size_t>(actor)) ticks_.resize(actor + 1);
    ticks_[actor] = tick;
  }

  bool knows(int actor, std::uint64_t tick) const {
    return static_cast<std::size_t>(actor) < ticks_.size() && ticks_[actor] >= tick;
  }

 private:
  std::vector<std::uint64_t> ticks_;
};

}  // namespace simulated_device
