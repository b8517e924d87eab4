/// \file
/// Integer arithmetic for sizes that come from users. A size that does not fit 63 bits is an error with a message, and
/// never wraps around to a small number. `what` names the quantity in the message. All arguments must be >= 0.
#pragma once

#include <cstdint>
#include <limits>
#include <string_view>

namespace zeropage {

/// a + b. Errors: ConfigError when the sum exceeds 63 bits or an argument is negative.
std::int64_t checked_add(std::int64_t a, std::int64_t b, std::string_view what);

/// a * b. Errors: as checked_add.
std::int64_t checked_mul(std::int64_t a, std::int64_t b, std::string_view what);

/// a * b, or the largest std::int64_t where the product is larger: for limits that a user may set to very large values.
/// Both must be >= 0.
constexpr std::int64_t saturating_mul(std::int64_t a, std::int64_t b) {
  constexpr std::int64_t kMax = std::numeric_limits<std::int64_t>::max();
  return b != 0 && a > kMax / b ? kMax : a * b;
}

/// The smallest multiple of `multiple` (>= 1) that is >= value. Errors: as checked_add.
std::int64_t checked_round_up(std::int64_t value, std::int64_t multiple, std::string_view what);

/// value / divisor rounded up, for value >= 0 and divisor >= 1; cannot overflow.
constexpr std::int64_t ceil_div(std::int64_t value, std::int64_t divisor) {
  return value / divisor + (value % divisor != 0 ? 1 : 0);
}

/// checked_round_up for sizes that cannot overflow: those of memory that exists.
constexpr std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
  return ceil_div(value, multiple) * multiple;
}

}  // namespace zeropage
