#include "zeropage/base/checked.h"

#include <fmt/format.h>

#include "zeropage/base/error.h"

namespace zeropage {
namespace {

[[noreturn]] void throw_out_of_range(std::int64_t a, char operation, std::int64_t b, std::string_view what) {
  throw ConfigError(fmt::format("{}: {} {} {} is not a size between 0 and 2^63 - 1; check the sizes it is made of",
                                what, a, operation, b));
}

}  // namespace

std::int64_t checked_add(std::int64_t a, std::int64_t b, std::string_view what) {
  std::int64_t sum = 0;
  if (a < 0 || b < 0 || __builtin_add_overflow(a, b, &sum)) throw_out_of_range(a, '+', b, what);
  return sum;
}

std::int64_t checked_mul(std::int64_t a, std::int64_t b, std::string_view what) {
  std::int64_t product = 0;
  if (a < 0 || b < 0 || __builtin_mul_overflow(a, b, &product)) throw_out_of_range(a, '*', b, what);
  return product;
}

std::int64_t checked_round_up(std::int64_t value, std::int64_t multiple, std::string_view what) {
  if (value < 0 || multiple < 1) throw_out_of_range(value, '/', multiple, what);
  return checked_mul(ceil_div(value, multiple), multiple, what);
}

}  // namespace zeropage
