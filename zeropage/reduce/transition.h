/// \file
/// State machines as an enum with a table of legal transitions, `may_follow(from, to)`, and names, `name_of(state)`.
#pragma once

#include <fmt/format.h>

#include <string_view>

#include "zeropage/base/error.h"

namespace zeropage::reduce {

/// `to`. Errors: Error, when it may not follow `from`: a fault of the reducer. `subject` says whose state it is.
template <typename State>
State checked_transition(State from, State to, std::string_view subject) {
  if (may_follow(from, to)) return to;
  throw Error(fmt::format("{} cannot change from '{}' to '{}'; this is a fault of zeropage, please report it", subject,
                          name_of(from), name_of(to)));
}

}  // namespace zeropage::reduce
