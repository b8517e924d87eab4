/// \file
/// The state of the backwards since the last reset of the reducer. `reset` returns to kNone from every state:
///
///            begin_...                  end_backward            finish
///     idle ------------> kAccumulating --------------> kEnded ----------> kExchanged
///     idle ------------> kReducing ------------------> kEnded ----------> kExchanged
///                            |     end_backward, before a step                ^
///                            +------------------------------------------------+
///
/// where idle is every state without a running backward. A gradient that arrives in an idle state, and a backward that
/// failed, lead to kUnprocessed: `end_backward`, `finish` and the next backward process such gradients.
/// `Reducer::move_backward_to` is the only place that changes the state.
#pragma once

#include <string_view>

namespace zeropage::reduce {

enum class BackwardState {
  kNone,          ///< no backward since the reset
  kAccumulating,  ///< a backward runs; whole pages keep its gradients in their frames
  kReducing,      ///< a backward runs; each page is reduced as soon as it is complete
  kUnprocessed,   ///< no backward runs, but there are gradients that no end of a backward has processed
  kEnded,         ///< the end of the last backward has processed all gradients; a step needs `finish` first
  kExchanged,     ///< as kEnded, and all ranks know which parameters received a gradient: a step may follow
};

constexpr bool is_running(BackwardState state) {
  return state == BackwardState::kAccumulating || state == BackwardState::kReducing;
}

constexpr std::string_view name_of(BackwardState state) {
  switch (state) {
    case BackwardState::kNone: return "none";
    case BackwardState::kAccumulating: return "accumulating";
    case BackwardState::kReducing: return "reducing";
    case BackwardState::kUnprocessed: return "unprocessed";
    case BackwardState::kEnded: return "ended";
    case BackwardState::kExchanged: return "exchanged";
  }
  return "unknown";
}

/// The table of legal transitions: a backward cannot begin in another one.
constexpr bool may_follow(BackwardState from, BackwardState to) { return !(is_running(from) && is_running(to)); }

}  // namespace zeropage::reduce
