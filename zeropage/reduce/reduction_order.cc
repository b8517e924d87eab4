#include "zeropage/reduce/reduction_order.h"

#include <algorithm>
#include <cstdint>
#include <utility>

namespace zeropage::reduce {

ReductionOrder::ReductionOrder(std::vector<int> trained) : pages_(std::move(trained)) { std::ranges::reverse(pages_); }

void ReductionOrder::add(int page) { pages_.push_back(page); }

int& ReductionOrder::backwards_without_gradient(int page) {
  const auto index = static_cast<std::size_t>(page);
  if (index >= backwards_without_gradient_.size()) backwards_without_gradient_.resize(index + 1);
  return backwards_without_gradient_[index];
}

std::optional<int> ReductionOrder::next() {
  while (next_ < pages_.size() && backwards_without_gradient(pages_[next_]) >= kBackwardsWithoutGradient) ++next_;
  if (next_ == pages_.size()) return std::nullopt;
  return pages_[next_];
}

void ReductionOrder::note_complete(int page) {
  if (settled_ || std::ranges::find(completed_, page) != completed_.end()) return;
  completed_.push_back(page);
}

void ReductionOrder::note_backward(int page, bool has_gradient) {
  auto& count = backwards_without_gradient(page);
  count = has_gradient ? 0 : count + 1;
}

void ReductionOrder::settle(comm::Communicator& communicator) {
  std::vector<int> order = completed_;
  for (const int page : pages_) {
    if (std::ranges::find(completed_, page) == completed_.end()) order.push_back(page);
  }
  communicator
      .broadcast(order.data(), static_cast<std::int64_t>(order.size() * sizeof(int)), 0,
                 comm::Tag{"order of gradient reduction", 0})
      ->wait();
  pages_ = std::move(order);
  completed_.clear();
  settled_ = true;
}

}  // namespace zeropage::reduce
