/// \file
/// Checks `host` of a manifest: Python values as `python/zeropage/checkpoint_values.py` and `cpp/host_state.cc` write
/// them. JSON's null, booleans, numbers, strings and lists are these values; an object has one key: {"tensor": name},
/// {"tuple": [...]}, {"dict": [[key, value], ...]}, or {"number": "inf"} for numbers that JSON does not have.
#pragma once

#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>

namespace zeropage::checkpoint {

/// Refuses a `host` that a reader could not use: values of another form, tensors that the checkpoint does not have, and
/// wrong types for the keys that readers use (`groups`: a list of dicts with strings as keys; `buffers`: a dict from
/// strings to tensors; `optimizer`: a string or null; `data`: two counts or null). Errors: CheckpointError naming
/// `origin` and the place.
void check_host(const nlohmann::json& host, const std::function<bool(const std::string&)>& has_tensor,
                const std::string& origin);

}  // namespace zeropage::checkpoint
