#include "zeropage/cpp/whole_state.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <cstring>
#include <nlohmann/json.hpp>

#include "zeropage/base/error.h"
#include "zeropage/checkpoint/optimizer_state.h"
#include "zeropage/checkpoint/untrusted_json.h"
#include "zeropage/engine/checkpoint.h"

namespace zeropage::cpp {
namespace {

using nlohmann::json;

std::string value_name(const std::string& parameter) {
  return fmt::format("{}/{}", checkpoint::form_name(checkpoint::StateForm::kWhole), parameter);
}

constexpr std::string_view kPrefix = "host/";  // of names in the JSON

std::string part_name(std::string_view name, const std::string& parameter) {
  return fmt::format("torch_part.{}/{}", name.substr(kPrefix.size()), parameter);
}

c10::IValue decode_value(const json& value, checkpoint::Checkpoint& step, const std::string& key,
                         const std::string& parameter) {
  if (value.is_null()) return {};
  if (value.is_boolean()) return value.get<bool>();
  if (value.is_number_integer()) return value.get<std::int64_t>();
  if (value.is_number_float()) return value.get<double>();
  if (const auto name = tensor_name(value); name && name->starts_with(kPrefix)) {
    return engine::read_tensor(step, part_name(*name, parameter));
  }
  throw CheckpointError(
      fmt::format("state '{}' of parameter '{}' in the checkpoint is neither a tensor nor a number: an optimizer of "
                  "C++ cannot take it; load with load_optimizer_states = false",
                  key, parameter));
}

}  // namespace

Tensors encode_whole_state(const ArchiveItems& items, const std::string& parameter) {
  Tensors tensors;
  json pairs = json::array();
  for (const auto& [key, value] : items) {
    auto stored = encode_scalar(value);
    if (value.isTensor()) stored = refer_to(value.toTensor().detach().contiguous(), tensors);
    if (!stored && !value.isNone()) {
      throw CheckpointError(fmt::format("state '{}' of parameter '{}' is a {}, which checkpoints cannot hold", key,
                                        parameter, value.tagKind()));
    }
    pairs.push_back(json::array({key, stored.value_or(nullptr)}));
  }
  Tensors saved;
  for (const auto& [name, tensor] : tensors) saved.emplace(part_name(name, parameter), tensor);
  const std::string text = dict(std::move(pairs)).dump();
  at::Tensor bytes = at::empty(static_cast<std::int64_t>(text.size()), at::kByte);
  std::memcpy(bytes.data_ptr(), text.data(), text.size());
  saved.emplace(value_name(parameter), std::move(bytes));
  return saved;
}

ArchiveItems decode_whole_state(checkpoint::Checkpoint& step, const std::string& parameter) {
  const at::Tensor bytes = engine::read_tensor(step, value_name(parameter)).contiguous();
  const std::string text(static_cast<const char*>(bytes.data_ptr()), static_cast<std::size_t>(bytes.numel()));
  const json stored = checkpoint::parse_untrusted(text, step.path());
  const json* pairs = pairs_of(stored);
  if (pairs == nullptr) {
    throw CheckpointError(fmt::format("{}: the state of parameter '{}' is no dict with names: {}", step.path(),
                                      parameter, text.substr(0, 200)));
  }
  ArchiveItems items;
  for (const auto& pair : *pairs) {
    const auto key = pair[0].get<std::string>();
    if (const auto value = decode_value(pair[1], step, key, parameter); !value.isNone()) items.emplace_back(key, value);
  }
  return items;
}

}  // namespace zeropage::cpp
