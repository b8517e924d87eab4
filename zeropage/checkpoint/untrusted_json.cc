#include "zeropage/checkpoint/untrusted_json.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "zeropage/base/error.h"

namespace zeropage::checkpoint {

using nlohmann::json;

json parse_untrusted(std::string_view text, const std::string& origin) {
  std::vector<std::set<std::string>> keys;
  const auto check = [&](int depth, json::parse_event_t event, json& parsed) {
    if (depth > kMaxJsonDepth) {
      throw CheckpointError(fmt::format("{}: nested deeper than {} levels", origin, kMaxJsonDepth));
    }
    if (event == json::parse_event_t::object_start) keys.emplace_back();
    if (event == json::parse_event_t::object_end) keys.pop_back();
    if (event == json::parse_event_t::key && !keys.back().insert(parsed.get<std::string>()).second) {
      throw CheckpointError(
          fmt::format("{}: the key '{}' comes twice in one object", origin, parsed.get<std::string>()));
    }
    return true;
  };
  try {
    return json::parse(text, check);
  } catch (const json::exception& error) {
    throw CheckpointError(fmt::format("{}: not JSON: {}", origin, error.what()));
  }
}

ObjectReader::ObjectReader(const json& value, std::string origin) : value_(value), origin_(std::move(origin)) {
  if (!value.is_object())
    throw CheckpointError(fmt::format("{}: expected an object, got {}", origin_, value.type_name()));
}

void ObjectReader::refuse(const char* key, const char* expected) const {
  throw CheckpointError(fmt::format("{}: expected {} at '{}', got {}", origin_, expected, key, at(key).type_name()));
}

const json& ObjectReader::at(const char* key) const {
  const auto found = value_.find(key);
  if (found == value_.end()) throw CheckpointError(fmt::format("{}: the key '{}' is missing", origin_, key));
  return *found;
}

const json& ObjectReader::array(const char* key) const {
  if (!at(key).is_array()) refuse(key, "a list");
  return at(key);
}

std::string ObjectReader::text(const char* key) const {
  if (!at(key).is_string()) refuse(key, "a text");
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
  std::vector<std::int64_t> numbers;
  for (const json& item : array(key)) {
    const bool fits = item.is_number_unsigned() && item.get<std::uint64_t>() <= static_cast<std::uint64_t>(INT64_MAX);
    if (!fits) refuse(key, "integers that are not negative");
    numbers.push_back(item.get<std::int64_t>());
  }
  return numbers;
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
