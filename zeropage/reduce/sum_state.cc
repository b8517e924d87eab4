#include "zeropage/reduce/sum_state.h"

#include <fmt/format.h>

#include "zeropage/base/error.h"

namespace zeropage::reduce {

SumState checked_transition(SumState from, SumState to, std::string_view label) {
  if (may_follow(from, to)) return to;
  throw Error(
      fmt::format("{}: the state of their sum cannot change from '{}' to '{}'; this is a fault of zeropage, "
                  "please report it",
                  label, name_of(from), name_of(to)));
}

}  // namespace zeropage::reduce
