#include "zeropage/cpp/stored_values.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

namespace zeropage::cpp {

using nlohmann::json;

json dict(json pairs) { return json{{"dict", std::move(pairs)}}; }

std::optional<json> encode_scalar(const c10::IValue& value) {
  if (value.isBool()) return value.toBool();
  if (value.isInt()) return value.toInt();
  if (value.isDouble()) return value.toDouble();
  return std::nullopt;
}

json refer_to(const at::Tensor& tensor, Tensors& tensors) {
  std::string name = fmt::format("host/{}", tensors.size());
  tensors.emplace(name, tensor);
  return {{"tensor", std::move(name)}};
}

const json* content_of(const json& value, const char* kind) {
  return value.is_object() && value.size() == 1 && value.contains(kind) ? &value.at(kind) : nullptr;
}

const json* pairs_of(const json& value) {
  const json* pairs = content_of(value, "dict");
  const auto is_named = [](const json& pair) { return pair.is_array() && pair.size() == 2 && pair[0].is_string(); };
  return pairs && pairs->is_array() && std::ranges::all_of(*pairs, is_named) ? pairs : nullptr;
}

std::optional<std::string> tensor_name(const json& value) {
  const json* name = content_of(value, "tensor");
  return name && name->is_string() ? std::optional(name->get<std::string>()) : std::nullopt;
}

}  // namespace zeropage::cpp
