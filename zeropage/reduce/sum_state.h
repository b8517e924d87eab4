/// \file
/// The state of a page's sum of gradients on this rank, apart from its frame, which may receive more gradients in any
/// state:
///
///                   start_reduction          complete                 invalidate_sum
///     kNone ---------------------> kReducing --------> kReady ---------------------> kInvalidated
///       ^   edit_sum: kInvalidated    ^                                                |   |   |
///       |                             +------------------------------------------------+   |   +--> kReady (edit_sum)
///       +---------------------------------- reset, and other forgetting -------------------+
///
/// `Reducer::move_to` is the only place that changes it.
#pragma once

#include <string_view>

namespace zeropage::reduce {

enum class SumState {
  kNone,         ///< there is no sum
  kReducing,     ///< a reduction is in progress, which makes the sum or adds to it
  kReady,        ///< complete on this rank; listeners have been notified
  kInvalidated,  ///< there is a sum, but listeners have been notified that it is about to change or to move
};

constexpr std::string_view name_of(SumState state) {
  switch (state) {
    case SumState::kNone: return "none";
    case SumState::kReducing: return "reducing";
    case SumState::kReady: return "ready";
    case SumState::kInvalidated: return "invalidated";
  }
  return "unknown";
}

/// The table of legal transitions.
constexpr bool may_follow(SumState from, SumState to) {
  switch (from) {
    case SumState::kNone: return to == SumState::kReducing || to == SumState::kInvalidated;
    case SumState::kReducing:
      return to == SumState::kReady || to == SumState::kNone;  // kNone: forgotten after a reduction that failed
    case SumState::kReady: return to == SumState::kInvalidated;
    case SumState::kInvalidated: return to != SumState::kInvalidated;
  }
  return false;
}

}  // namespace zeropage::reduce
