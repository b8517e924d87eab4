#include "zeropage/checkpoint/untrusted_json.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <utility>

#include "zeropage/base/error.h"
#include "zeropage/base/machine_json.h"

namespace zeropage::checkpoint {

using nlohmann::json;

json parse_untrusted(std::string_view text, const std::string& origin) {
  try {
    return zeropage::json::parse_machine_json(text, kMaxJsonDepth);
  } catch (const zeropage::json::SyntaxError& error) {
    throw CheckpointError(fmt::format("{}: {}", origin, error.what()));
  }
}

std::vector<std::int64_t> natural_numbers(const json& list, const std::string& origin, const char* key) {
  std::vector<std::int64_t> numbers;
  const auto refuse = [&](const char* expected, const json& found) {
    throw CheckpointError(fmt::format("{}: expected {} at '{}', got {}", origin, expected, key, found.type_name()));
  };
  if (!list.is_array()) refuse("a list", list);
  for (const json& item : list) {
    const bool fits = item.is_number_unsigned() && item.get<std::uint64_t>() <= static_cast<std::uint64_t>(INT64_MAX);
    if (!fits) refuse("integers that are not negative", item);
    numbers.push_back(item.get<std::int64_t>());
  }
  return numbers;
}

ObjectReader::ObjectReader(const json& value, std::string origin) : value_(value), origin_(std::move(origin)) {
  if (!value.is_object())
    throw CheckpointError(fmt::format("{}: expected an object, got {}", origin_, value.type_name()));
}

void ObjectReader::refuse(const char* key, const char* expected) const {
  throw CheckpointError(fmt::format("{}: expected {} at '{}', got {}", origin_, expected, key, at(key).type_name()));
}

bool ObjectReader::has(const char* key) const { return value_.contains(key); }

const json& ObjectReader::at(const char* key) const {
  const auto found = value_.find(key);
  if (found == value_.end()) throw CheckpointError(fmt::format("{}: the key '{}' is missing", origin_, key));
  return *found;
}

const json& ObjectReader::array(const char* key) const {
  if (!at(key).is_array()) refuse(key, "a list");
  return at(key);
}

std::string ObjectReader::string(const char* key) const {
  if (!at(key).is_string()) refuse(key, "a string");
  return at(key).get<std::string>();
}

std::int64_t ObjectReader::integer(const char* key, std::int64_t min, std::int64_t max) const {
  const json& value = at(key);
  const bool fits = value.is_number_integer() && (!value.is_number_unsigned() ||
                                                  value.get<std::uint64_t>() <= static_cast<std::uint64_t>(INT64_MAX));
  if (!fits) refuse(key, "an integer of 63 bits");
  const auto number = value.get<std::int64_t>();
  if (number < min || number > max) {
    throw CheckpointError(fmt::format("{}: '{}' is {}; expected {} to {}", origin_, key, number, min, max));
  }
  return number;
}

std::vector<std::int64_t> ObjectReader::integers(const char* key) const {
  return natural_numbers(at(key), origin_, key);
}

bool ObjectReader::boolean(const char* key) const {
  if (!at(key).is_boolean()) refuse(key, "true or false");
  return at(key).get<bool>();
}

double ObjectReader::number(const char* key) const {
  if (!at(key).is_number()) refuse(key, "a number");
  return at(key).get<double>();
}

}  // namespace zeropage::checkpoint
