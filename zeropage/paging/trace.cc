#include "zeropage/paging/trace.h"

#include <algorithm>

#include "zeropage/base/digest.h"

namespace zeropage::paging {
namespace {

// A pass longer than this (evaluation for hours between two steps) is recorded only at its beginning.
constexpr std::size_t kMaxRecorded = 1 << 20;

}  // namespace

void Trace::note(int page) {
  if (!recorded_.empty() && recorded_.back() == page) return;
  if (recorded_.size() < kMaxRecorded) recorded_.push_back(page);
  if (position_ < static_cast<std::int64_t>(predicted_.size()) && predicted_[position_] == page) {
    ++position_;
    return;
  }
  as_predicted_ = false;
  const auto& uses = uses_[page];
  if (uses.empty()) return;
  auto next = std::lower_bound(uses.begin(), uses.end(), position_);
  position_ = (next != uses.end() ? *next : uses.front()) + 1;
}

void Trace::end_pass() {
  if (!recorded_.empty() && recorded_ != predicted_) {
    for (auto& uses : uses_) uses.clear();
    predicted_ = recorded_;
    for (std::size_t i = 0; i < predicted_.size(); ++i) uses_[predicted_[i]].push_back(static_cast<std::int64_t>(i));
    hash_ = hash64(reinterpret_cast<const std::byte*>(predicted_.data()),
                   static_cast<std::int64_t>(predicted_.size() * sizeof(int)));
  }
  recorded_.clear();
  position_ = 0;
  as_predicted_ = true;
}

std::int64_t Trace::next_use(int page) const {
  const auto& uses = uses_[page];
  auto next = std::lower_bound(uses.begin(), uses.end(), position_);
  return next == uses.end() ? kNever : *next;
}

}  // namespace zeropage::paging
