/// \file
/// Values in a checkpoint's JSON, in the form of Python's checkpoint_values.py: a dict is {"dict": [[key, value],
/// ...]}, a tuple {"tuple": [...]}, a tensor {"tensor": its name in the checkpoint}, a number that JSON does not have
/// {"number": text}.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <map>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

namespace zeropage::cpp {

using Tensors = std::map<std::string, at::Tensor>;

nlohmann::json dict(nlohmann::json pairs);

/// A bool, integer or float; nullopt for other values.
std::optional<nlohmann::json> encode_scalar(const c10::IValue& value);

/// Adds the tensor to `tensors` under a new name, host/N, and refers to it.
nlohmann::json refer_to(const at::Tensor& tensor, Tensors& tensors);

/// The content of {"kind": content}, or null.
const nlohmann::json* content_of(const nlohmann::json& value, const char* kind);

/// The pairs of a dict whose keys are strings, or null.
const nlohmann::json* pairs_of(const nlohmann::json& value);

/// The name of the tensor that `value` refers to, or nullopt.
std::optional<std::string> tensor_name(const nlohmann::json& value);

}  // namespace zeropage::cpp
