#include "zeropage/cpp/host_state.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "zeropage/base/error.h"
#include "zeropage/checkpoint/untrusted_json.h"
#include "zeropage/cpp/hyperparameters.h"
#include "zeropage/cpp/stored_values.h"
#include "zeropage/engine/checkpoint.h"

namespace zeropage::cpp {
namespace {

using nlohmann::json;

json encode(const json& value) {
  if (value.is_object()) {
    json pairs = json::array();
    for (const auto& [key, item] : value.items()) pairs.push_back(json::array({key, encode(item)}));
    return dict(std::move(pairs));
  }
  if (value.is_array()) {
    json items = json::array();
    for (const auto& item : value) items.push_back(encode(item));
    return items;
  }
  const bool too_large = value.is_number_unsigned() && value.get<std::uint64_t>() > std::uint64_t{INT64_MAX};
  return too_large ? json{{"number", value.dump()}} : value;
}

/// Converts to plain JSON. Values that JSON does not have (a tensor, a key that is no text) stay in the form of the
/// checkpoint.
json decode(const json& value) {
  if (const json* pairs = pairs_of(value)) {
    json out = json::object();
    for (const auto& pair : *pairs) out[pair[0].get<std::string>()] = decode(pair[1]);
    return out;
  }
  const json* tuple = content_of(value, "tuple");
  const json& items = tuple ? *tuple : value;
  if (!items.is_array()) return value;
  json out = json::array();
  for (const auto& item : items) out.push_back(decode(item));
  return out;
}

json encode_client(const ClientState& client, Tensors& tensors) {
  const json given = json::parse(client.json, nullptr, /*allow_exceptions=*/false);
  if (!given.is_object()) throw UsageError("client_state.json is no JSON object: " + client.json.substr(0, 200));
  json encoded = encode(given);
  for (const auto& [name, tensor] : client.tensors) {
    if (given.contains(name)) throw UsageError("client_state has a tensor and a JSON value of the name " + name);
    encoded["dict"].push_back(json::array({name, refer_to(tensor, tensors)}));
  }
  return encoded;
}

/// Python's betas are a tuple.
json encode_group(config::OptimizerKind kind, const config::OptimizerParams& params) {
  const json values = hyperparameters_to_json(kind, params);
  json pairs = json::array();
  for (const auto& [name, value] : values.items()) {
    pairs.push_back(json::array({name, value.is_array() ? json{{"tuple", value}} : value}));
  }
  return dict(std::move(pairs));
}

json encode_option(const c10::IValue& value) {
  if (auto scalar = encode_scalar(value)) return *scalar;
  if (value.isString()) return value.toStringRef();
  if (!value.isTuple()) return nullptr;
  json items = json::array();
  for (const auto& item : value.toTupleRef().elements()) items.push_back(encode_option(item));
  return json{{"tuple", std::move(items)}};
}

json encode_options(const ArchiveItems& options) {
  json pairs = json::array();
  for (const auto& [name, value] : options) pairs.push_back(json::array({name, encode_option(value)}));
  return dict(std::move(pairs));
}

/// Converts `stored` to the type of `like`; refuses other values.
c10::IValue decode_option(const json& stored, const c10::IValue& like, const std::string& name) {
  if (like.isBool() && stored.is_boolean()) return stored.get<bool>();
  if (like.isInt() && stored.is_number()) return stored.get<std::int64_t>();
  if (like.isDouble() && stored.is_number()) return stored.get<double>();
  if (like.isNone() || like.isString()) return stored.is_string() ? c10::IValue(stored.get<std::string>()) : like;
  if (like.isTuple() && stored.is_array() && stored.size() == like.toTupleRef().size()) {
    std::vector<c10::IValue> items;
    for (std::size_t i = 0; i < stored.size(); ++i)
      items.push_back(decode_option(stored[i], like.toTupleRef().elements()[i], name));
    return c10::ivalue::Tuple::create(std::move(items));
  }
  throw CheckpointError(fmt::format("the checkpoint's hyperparameter {} cannot be used: {}", name, stored.dump()));
}

/// `group` must be an object.
ArchiveItems decode_options(const json& group, ArchiveItems options) {
  for (auto& [name, value] : options) {
    if (const auto found = group.find(name); found != group.end()) {
      value = decode_option(*found, value, name);
    } else if (name == "amsgrad") {
      value = false;  // the checkpoint is from the engine's own update, which does not have this option
    }
  }
  return options;
}

/// A hyperparameter of the group that an object with these options does not support. An Adam does not become an AdamW.
std::string object_cannot_follow(const json& group, const ArchiveItems& options) {
  std::set<std::string> known;
  for (const auto& [name, value] : options) {
    known.insert(name);
    const auto stored = group.find(name);
    if (name == kDecoupled && stored != group.end() && stored->is_boolean() && stored->get<bool>() != value.toBool()) {
      return name;
    }
  }
  return cannot_follow(group, known);
}

ClientState read_client(const json& value, checkpoint::Checkpoint& step) {
  ClientState client;
  json plain = json::object();
  if (const json* pairs = pairs_of(value)) {
    for (const auto& pair : *pairs) {
      const auto key = pair[0].get<std::string>();
      if (const auto name = tensor_name(pair[1])) {
        client.tensors.emplace(key, engine::read_tensor(step, *name));
      } else {
        plain[key] = decode(pair[1]);
      }
    }
  }
  client.json = plain.dump();
  return client;
}

}  // namespace

std::string random_name(int rank, bool device) { return fmt::format("host/{}/{}", rank, device ? "device" : "torch"); }

std::string host_state_to_json(const HostState& state, config::OptimizerKind kind, Tensors& tensors) {
  json groups = json::array();
  for (const auto& options : state.options) groups.push_back(encode_options(options));
  if (state.options.empty()) {
    for (const auto& params : state.groups) groups.push_back(encode_group(kind, params));
  }
  json buffers = json::array();
  json client = encode_client(state.client, tensors);
  for (const auto& [name, buffer] : state.buffers) buffers.push_back(json::array({name, refer_to(buffer, tensors)}));
  const json out = {{"client", std::move(client)},
                    {"optimizer", state.optimizer ? json(*state.optimizer) : json()},
                    {"groups", std::move(groups)},
                    {"scheduler", nullptr},
                    {"buffers", dict(std::move(buffers))}};
  return out.dump();
}

HostState read_host_state(checkpoint::Checkpoint& step, int rank, config::OptimizerKind kind,
                          const config::OptimizerParams& params, const std::vector<ArchiveItems>& options) {
  const json stored = checkpoint::parse_untrusted(step.manifest().host_json, step.path());
  if (!stored.is_object()) throw CheckpointError(step.path() + ": the manifest's host is no object");
  HostState state;
  state.client = read_client(stored.value("client", json()), step);
  if (const json name = stored.value("optimizer", json()); name.is_string()) state.optimizer = name.get<std::string>();
  for (const json& name : stored.value("excluded", json::array())) {
    if (name.is_string()) state.excluded.insert(name.get<std::string>());
  }
  const json groups = decode(stored.value("groups", json::array()));
  for (const auto& group : groups) {
    if (!group.is_object()) throw CheckpointError(step.path() + ": a parameter group is no dict");
    state.groups.push_back(params);
    read_hyperparameters(group, kind, state.groups.back());
    const auto index = state.groups.size() - 1;
    const auto problem = index < options.size() ? object_cannot_follow(group, options[index])
                                                : cannot_follow(group, hyperparameter_names(kind));
    if (!problem.empty()) state.cannot_follow = fmt::format("{}={}", problem, group.at(problem).dump());
    if (index < options.size()) state.options.push_back(decode_options(group, options[index]));
  }
  if (const json buffers = stored.value("buffers", json()); const json* pairs = pairs_of(buffers)) {
    for (const auto& pair : *pairs) {
      const auto name = tensor_name(pair[1]);
      if (!name) throw CheckpointError(step.path() + ": buffer " + pair[0].dump() + " is no tensor");
      state.buffers.emplace(pair[0].get<std::string>(), engine::read_tensor(step, *name));
    }
  }
  const auto read_random = [&](bool device) {
    const std::string name = random_name(rank, device);
    return step.find(name) ? engine::read_tensor(step, name) : at::Tensor();
  };
  state.random = read_random(false);
  state.device_random = read_random(true);
  return state;
}

}  // namespace zeropage::cpp
