#include "zeropage/checkpoint/host_values.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "zeropage/base/error.h"
#include "zeropage/base/json_text.h"

namespace zeropage::checkpoint {
namespace {

using nlohmann::json;

constexpr std::size_t kMaxDigits = 4000;  // Python does not read integers with more digits

[[noreturn]] void refuse(const std::string& where, const char* expected, const json& found) {
  const std::string text = found.dump(-1, ' ', false, json::error_handler_t::replace);
  throw CheckpointError(fmt::format("{}: expected {}, got {}", where, expected, zeropage::json::printable(text)));
}

/// The content of {"kind": content}, or null.
const json* content_of(const json& value, const char* kind) {
  return value.is_object() && value.size() == 1 && value.contains(kind) ? &value.at(kind) : nullptr;
}

bool is_number(const json& content) {
  if (!content.is_string()) return false;
  const auto& text = content.get_ref<const std::string&>();
  if (text == "inf" || text == "-inf" || text == "nan") return true;
  const std::size_t sign = text.starts_with('-') ? 1 : 0;
  return text.size() > sign && text.size() <= kMaxDigits &&
         text.find_first_not_of("0123456789", sign) == std::string::npos;
}

/// Whether this is the position of a data loader: epoch and entries.
bool is_position(const json& value) {
  const auto is_count = [](const json& item) { return item.is_number_unsigned(); };
  return value.is_null() ||
         (value.is_array() && value.size() == 2 && std::all_of(value.begin(), value.end(), is_count));
}

/// Whether it can be a key of a Python dict.
bool is_hashable(const json& value) {
  if (const json* tuple = content_of(value, "tuple")) {
    return tuple->is_array() && std::all_of(tuple->begin(), tuple->end(), is_hashable);
  }
  return !value.is_array() && content_of(value, "dict") == nullptr;
}

class Checker {
 public:
  explicit Checker(const std::function<bool(const std::string&)>& has_tensor) : has_tensor_(has_tensor) {}

  void value(const json& given, const std::string& where) const {
    if (given.is_array()) return list(given, where);
    if (!given.is_object()) return;
    if (const json* name = content_of(given, "tensor")) {
      if (!name->is_string() || !has_tensor_(name->get<std::string>()))
        refuse(where, "the name of a tensor of the step", *name);
    } else if (const json* tuple = content_of(given, "tuple")) {
      list(*tuple, where);
    } else if (const json* number = content_of(given, "number")) {
      if (!is_number(*number)) refuse(where, "a number", *number);
    } else {
      dict(given, where);
    }
  }

  /// A dict; with `text_keys` one whose keys are all strings.
  void dict(const json& given, const std::string& where, bool text_keys = false) const {
    const json* pairs = content_of(given, "dict");
    if (pairs == nullptr || !pairs->is_array()) refuse(where, "a value as in checkpoint-format.md", given);
    for (const json& pair : *pairs) {
      if (!pair.is_array() || pair.size() != 2 || !is_hashable(pair[0])) refuse(where, "a pair of key and value", pair);
      if (text_keys && !pair[0].is_string()) refuse(where, "a key that is a string", pair[0]);
      value(pair[0], where);
      value(pair[1], where);
    }
  }

 private:
  void list(const json& given, const std::string& where) const {
    if (!given.is_array()) refuse(where, "a list", given);
    for (const json& item : given) value(item, where);
  }

  const std::function<bool(const std::string&)>& has_tensor_;
};

}  // namespace

void check_host(const json& host, const std::function<bool(const std::string&)>& has_tensor,
                const std::string& origin) {
  if (!host.is_object()) refuse(origin + ", host", "an object", host);
  const Checker checker(has_tensor);
  for (const auto& [key, value] : host.items()) {
    const std::string where = fmt::format("{}, host.{}", origin, zeropage::json::printable(key));
    if (key == "optimizer") {
      if (!value.is_null() && !value.is_string()) refuse(where, "a string or null", value);
    } else if (key == "data") {
      if (!is_position(value)) refuse(where, "null, or an epoch and a number of entries", value);
    } else if (key == "groups") {
      if (!value.is_array()) refuse(where, "a list", value);
      for (const json& group : value) checker.dict(group, where, /*text_keys=*/true);
    } else if (key == "buffers" && !value.is_null()) {
      checker.dict(value, where, /*text_keys=*/true);
      for (const json& pair : value["dict"]) {
        if (content_of(pair[1], "tensor") == nullptr) refuse(where, "tensors alone", pair[1]);
      }
    } else {
      checker.value(value, where);
    }
  }
}

}  // namespace zeropage::checkpoint
