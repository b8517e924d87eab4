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

std::string part_name(std::string_view number, const std::string& parameter) {
  return fmt::format("torch_part.{}/{}", number, parameter);
}

c10::IValue decode_value(const json& value, checkpoint::Checkpoint& step, const std::string& key,
                         const std::string& parameter) {
  if (value.is_null()) return {};
  if (value.is_boolean()) return value.get<bool>();
  if (value.is_number_integer()) return value.get<std::int64_t>();
  if (value.is_number_float()) return value.get<double>();
  if (value.is_object() && value.size() == 1 && value.contains("tensor") && value.at("tensor").is_string()) {
    const auto name = value.at("tensor").get<std::string>();
    constexpr std::string_view kPrefix = "host/";
    if (name.starts_with(kPrefix)) return engine::read_tensor(step, part_name(name.substr(kPrefix.size()), parameter));
  }
  throw CheckpointError(
      fmt::format("state '{}' of parameter '{}' in the checkpoint is neither a tensor nor a number: an optimizer of "
                  "C++ cannot take "
                  "it; load with load_optimizer_states = false",
                  key, parameter));
}

}  // namespace

std::map<std::string, at::Tensor> encode_whole_state(const ArchiveItems& items, const std::string& parameter) {
  std::map<std::string, at::Tensor> saved;
  json pairs = json::array();
  int tensors = 0;
  for (const auto& [key, value] : items) {
    json stored;
    if (value.isTensor()) {
      saved.emplace(part_name(std::to_string(tensors), parameter), value.toTensor().detach().contiguous());
      stored = {{"tensor", fmt::format("host/{}", tensors++)}};
    } else if (value.isBool()) {
      stored = value.toBool();
    } else if (value.isInt()) {
      stored = value.toInt();
    } else if (value.isDouble()) {
      stored = value.toDouble();
    } else if (!value.isNone()) {
      throw CheckpointError(fmt::format("state '{}' of parameter '{}' is a {}, which checkpoints cannot hold", key,
                                        parameter, value.tagKind()));
    }
    pairs.push_back(json::array({key, std::move(stored)}));
  }
  const std::string text = json{{"dict", std::move(pairs)}}.dump();
  at::Tensor bytes = at::empty(static_cast<std::int64_t>(text.size()), at::kByte);
  std::memcpy(bytes.data_ptr(), text.data(), text.size());
  saved.emplace(value_name(parameter), std::move(bytes));
  return saved;
}

ArchiveItems decode_whole_state(checkpoint::Checkpoint& step, const std::string& parameter) {
  const at::Tensor bytes = engine::read_tensor(step, value_name(parameter)).contiguous();
  const std::string text(static_cast<const char*>(bytes.data_ptr()), static_cast<std::size_t>(bytes.numel()));
  const json stored = checkpoint::parse_untrusted(text, step.path());
  const bool is_dict = stored.is_object() && stored.contains("dict") && stored.at("dict").is_array();
  ArchiveItems items;
  for (const auto& pair : is_dict ? stored.at("dict") : json::array({nullptr})) {
    if (!pair.is_array() || pair.size() != 2 || !pair[0].is_string()) {
      throw CheckpointError(fmt::format("{}: the state of parameter '{}' is no dict with names: {}", step.path(),
                                        parameter, text.substr(0, 200)));
    }
    const auto key = pair[0].get<std::string>();
    if (const auto value = decode_value(pair[1], step, key, parameter); !value.isNone()) items.emplace_back(key, value);
  }
  return items;
}

}  // namespace zeropage::cpp
