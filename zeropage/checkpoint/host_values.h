/// \file
/// What `host` of a manifest may hold: values of Python as `python/zeropage/checkpoint_values.py` and
/// `cpp/host_state.cc` write them. JSON's null, booleans, numbers, strings and lists stand for themselves; an object
/// has one key: {"tensor": name}, {"tuple": [...]}, {"dict": [[key, value], ...]}, or {"number": "inf"} for what JSON
/// has not.
#pragma once

#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>

namespace zeropage::checkpoint {

/// Refuses a `host` that no reader could take over: values of another form, tensors that the step does not have, and
/// for the keys that readers know another kind than theirs (`groups`: a list of dicts with strings as keys; `buffers`:
/// a dict from strings to tensors;
/// `optimizer`: a string or null; `data`: two counts or null). Errors: CheckpointError naming `origin` and the place.
void check_host(const nlohmann::json& host, const std::function<bool(const std::string&)>& has_tensor,
                const std::string& origin);

}  // namespace zeropage::checkpoint
