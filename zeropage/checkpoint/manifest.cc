#include "zeropage/checkpoint/manifest.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>

#include "zeropage/base/checked.h"
#include "zeropage/base/digest.h"
#include "zeropage/base/error.h"
#include "zeropage/base/json_text.h"
#include "zeropage/checkpoint/host_values.h"
#include "zeropage/checkpoint/untrusted_json.h"

namespace zeropage::checkpoint {
namespace {

using nlohmann::json;

// The document is one JSON object: {"digest": "<digest of everything after this line>",\n"manifest": {...}}\n
constexpr std::string_view kHead = "{\"digest\": \"";
constexpr std::string_view kHeadEnd = "\",\n";
constexpr std::size_t kDigestDigits = 32;
constexpr const char* kFormatName = "zeropage-checkpoint";
constexpr std::int64_t kMinChunkBytes = 4096;
constexpr std::int64_t kMaxChunkBytes = std::int64_t{64} << 20;
constexpr std::int64_t kDigestDigitsPerChunk = 16;

json training_to_json(const TrainingState& training) {
  json out = {{"global_steps", training.global_steps},
              {"skipped_steps", training.skipped_steps},
              {"consecutive_skips", training.consecutive_skips},
              {"micro_steps", training.micro_steps},
              {"schedule_iteration", nullptr},
              {"loss_scale", nullptr}};
  if (training.samples) out["samples"] = *training.samples;
  if (training.schedule_iteration) out["schedule_iteration"] = *training.schedule_iteration;
  if (training.loss_scale) {
    const auto& scale = *training.loss_scale;
    out["loss_scale"] = {{"scale", scale.scale},
                         {"step", scale.step},
                         {"last_overflow_step", scale.last_overflow_step},
                         {"hysteresis_left", scale.hysteresis_left}};
  }
  return out;
}

TrainingState training_from_json(const json& value, const std::string& origin) {
  const ObjectReader reader(value, origin + ", training");
  TrainingState training;
  training.global_steps = reader.integer("global_steps", 0);
  training.skipped_steps = reader.integer("skipped_steps", 0);
  training.consecutive_skips = reader.integer("consecutive_skips", 0);
  training.micro_steps = reader.integer("micro_steps", 0);
  if (value.contains("samples")) training.samples = reader.integer("samples", 0);
  if (!reader.at("schedule_iteration").is_null())
    training.schedule_iteration = reader.integer("schedule_iteration", -1);
  if (!reader.at("loss_scale").is_null()) {
    const ObjectReader scale(reader.at("loss_scale"), origin + ", training.loss_scale");
    training.loss_scale =
        optim::LossScaleState{scale.number("scale"), scale.integer("step", 0), scale.integer("last_overflow_step", -1),
                              static_cast<int>(scale.integer("hysteresis_left", 0, INT32_MAX))};
  }
  return training;
}

/// Appends `[first, second, ...]`; `append` writes each item.
template <typename Items, typename Append>
void append_list(std::string& out, const Items& items, const Append& append) {
  out += '[';
  for (const auto& item : items) {
    if (&item != &*items.begin()) out += ',';
    append(item);
  }
  out += ']';
}

/// Rank, offset and extent of each segment; they must cover [0, numel) in order.
void read_segments(const ObjectReader& reader, int world_size, const std::string& where, TensorRecord& tensor) {
  const std::int64_t numel = shape_numel(tensor.info.shape, where);
  std::set<std::int64_t> ranks;
  std::int64_t end = 0;
  for (const json& item : reader.array("segments")) {
    const auto numbers = natural_numbers(item, where, "segments");
    if (numbers.size() != 3) throw CheckpointError(where + ": a segment is [rank, offset, extent]");
    if (numbers[0] >= world_size || !ranks.insert(numbers[0]).second) {
      throw CheckpointError(fmt::format("{}: rank {} holds a segment, of {} ranks that hold one each at most", where,
                                        numbers[0], world_size));
    }
    if (numbers[1] != end || numbers[2] < 1 || numbers[2] > numel - end) {
      throw CheckpointError(fmt::format("{}: a segment at {} with {} elements, where the one before ends at {} of {}",
                                        where, numbers[1], numbers[2], end, numel));
    }
    end += numbers[2];
    tensor.segments.push_back({static_cast<int>(numbers[0]), numbers[1], numbers[2]});
  }
  if (end != numel) throw CheckpointError(fmt::format("{}: segments end at {} of {} elements", where, end, numel));
}

std::vector<TensorRecord> tensors_from_json(const ObjectReader& reader, int world_size, const std::string& origin) {
  std::vector<TensorRecord> tensors;
  std::set<std::string> names;
  for (const json& item : reader.array("tensors")) {
    const ObjectReader entry(item, origin + ", tensors");
    TensorRecord tensor;
    tensor.info = {entry.string("name"), entry.string("dtype"), entry.integers("shape")};
    check_name(tensor.info.name, origin);
    const std::string where = fmt::format("{}, tensor '{}'", origin, tensor.info.name);
    if (!names.insert(tensor.info.name).second) throw CheckpointError(where + ": is there twice");
    dtype_bytes(tensor.info.dtype, where);
    read_segments(entry, world_size, where, tensor);
    tensors.push_back(std::move(tensor));
  }
  return tensors;
}

/// Whether there is a tensor of a name. Cost: log n for names in order, as they are written.
std::function<bool(const std::string&)> has_tensor(const std::vector<TensorRecord>& tensors) {
  const auto by_name = [](const TensorRecord& a, const TensorRecord& b) { return a.info.name < b.info.name; };
  auto names = std::make_shared<std::set<std::string_view>>();
  if (!std::is_sorted(tensors.begin(), tensors.end(), by_name)) {
    for (const auto& tensor : tensors) names->insert(tensor.info.name);
  }
  return [&tensors, names](const std::string& name) {
    if (!names->empty()) return names->contains(name);
    const auto found = std::lower_bound(tensors.begin(), tensors.end(), name,
                                        [](const TensorRecord& record, const auto& n) { return record.info.name < n; });
    return found != tensors.end() && found->info.name == name;
  };
}

std::vector<ParameterRecord> parameters_from_json(const ObjectReader& reader, const std::string& origin) {
  std::vector<ParameterRecord> parameters;
  for (const json& item : reader.array("parameters")) {
    const ObjectReader entry(item, origin + ", parameters");
    ParameterRecord parameter;
    parameter.name = entry.string("name");
    check_name(parameter.name, origin);
    for (const json& alias : entry.array("aliases")) {
      if (!alias.is_string()) entry.refuse("aliases", "strings");
      parameter.aliases.push_back(alias.get<std::string>());
    }
    parameter.trainable = entry.boolean("trainable");
    parameter.updates = entry.integer("updates", 0);
    parameter.order = entry.integers("order");
    for (std::size_t dim = 0; dim < parameter.order.size(); ++dim) {
      if (std::count(parameter.order.begin(), parameter.order.end(), static_cast<std::int64_t>(dim)) == 1) continue;
      throw CheckpointError(fmt::format("{}, parameter '{}': its order [{}] does not have every dimension once", origin,
                                        parameter.name, fmt::join(parameter.order, ", ")));
    }
    parameters.push_back(std::move(parameter));
  }
  return parameters;
}

std::vector<ShardRecord> shards_from_json(const ObjectReader& reader, const Manifest& manifest,
                                          const std::string& origin) {
  std::vector<ShardRecord> shards;
  for (const json& item : reader.array("shards")) {
    const ObjectReader entry(item, origin + ", shards");
    ShardRecord shard{entry.integer("bytes", 1), entry.string("digests")};
    if (static_cast<std::int64_t>(shard.digests.size()) !=
            ceil_div(shard.bytes, manifest.chunk_bytes) * kDigestDigitsPerChunk ||
        shard.digests.find_first_not_of("0123456789abcdef") != std::string::npos) {
      throw CheckpointError(fmt::format("{}: shard {} has {} bytes and {} digits of digests for chunks of {}", origin,
                                        shards.size(), shard.bytes, shard.digests.size(), manifest.chunk_bytes));
    }
    shards.push_back(std::move(shard));
  }
  if (static_cast<int>(shards.size()) != manifest.world_size) {
    throw CheckpointError(fmt::format("{}: {} shards of {} ranks", origin, shards.size(), manifest.world_size));
  }
  return shards;
}

}  // namespace

std::string_view manifest_body(std::string_view text, const std::string& origin) {
  const std::size_t body_at = kHead.size() + kDigestDigits + kHeadEnd.size();
  const bool framed = text.size() > body_at && text.substr(0, kHead.size()) == kHead &&
                      text.substr(kHead.size() + kDigestDigits, kHeadEnd.size()) == kHeadEnd;
  if (!framed) throw CheckpointError(origin + ": this is no manifest: it does not start with its digest");
  const auto body = text.substr(body_at);
  if (digest128(body) != text.substr(kHead.size(), kDigestDigits)) {
    throw CheckpointError(origin + ": the manifest is damaged: its digest is not that of its content");
  }
  return body;
}

std::string manifest_digest(std::string_view text) {
  return text.starts_with(kHead) ? std::string(text.substr(kHead.size(), kDigestDigits)) : std::string();
}

void check_format(const ObjectReader& reader, const std::string& origin) {
  if (reader.string("format") != kFormatName) throw CheckpointError(origin + ": this is not a checkpoint of zeropage");
  const auto version = reader.integer("version", 0);
  if (version != kFormatVersion) {
    throw CheckpointError(
        fmt::format("{}: has format version {}; this release reads version {}: use the release that "
                    "wrote it ({})",
                    origin, version, kFormatVersion, zeropage::json::printable(reader.string("library_version"))));
  }
}

std::string read_run(const ObjectReader& reader) { return reader.has("run") ? reader.string("run") : std::string(); }

std::string shard_file_name(int rank, int world_size) {
  return fmt::format("shard-{:05}-of-{:05}.safetensors", rank, world_size);
}

// The values for lists of checkpoints are written first, so that these need not read the rest (manifest_summary.h).
std::string manifest_to_text(const Manifest& manifest) {
  std::string out = "\"manifest\": {";
  const auto field = [&](const char* name, const json& value) {
    out += fmt::format("{}\"{}\":{}", out.back() == '{' ? "" : ",", name, value.dump());
  };
  field("format", kFormatName);
  field("version", kFormatVersion);
  field("library_version", manifest.library_version);
  field("run", manifest.run);
  field("tag", manifest.tag);
  field("sequence", manifest.sequence);
  field("latest", manifest.latest);
  field("world_size", manifest.world_size);
  field("stage", manifest.stage);
  field("frozen_excluded", manifest.frozen_excluded);
  field("chunk_bytes", manifest.chunk_bytes);
  field("training", training_to_json(manifest.training));
  out += ",\"shards\":";
  append_list(out, manifest.shards, [&](const ShardRecord& shard) {
    out += fmt::format("{{\"bytes\":{},\"digests\":\"{}\"}}", shard.bytes, shard.digests);
  });
  out += ",\"parameters\":";
  append_list(out, manifest.parameters, [&](const ParameterRecord& parameter) {
    out += fmt::format("{{\"name\":{},\"aliases\":{},\"trainable\":{},\"updates\":{},\"order\":[{}]}}",
                       json(parameter.name).dump(), json(parameter.aliases).dump(), parameter.trainable,
                       parameter.updates, fmt::join(parameter.order, ","));
  });
  out += ",\"tensors\":";
  append_list(out, manifest.tensors, [&](const TensorRecord& tensor) {
    out += fmt::format("{{\"name\":{},\"dtype\":\"{}\",\"shape\":[{}],\"segments\":", json(tensor.info.name).dump(),
                       tensor.info.dtype, fmt::join(tensor.info.shape, ","));
    append_list(out, tensor.segments, [&](const StoredSegment& segment) {
      out += fmt::format("[{},{},{}]", segment.rank, segment.offset, segment.numel);
    });
    out += '}';
  });
  field("config", json::parse(manifest.config_json));
  field("host", json::parse(manifest.host_json));
  out += "}}\n";
  return fmt::format("{}{}{}{}", kHead, digest128(out), kHeadEnd, out);
}

Manifest manifest_from_text(const std::string& text, const std::string& origin) {
  const json document = parse_untrusted(fmt::format("{{{}", manifest_body(text, origin)), origin);
  const ObjectReader reader(ObjectReader(document, origin).at("manifest"), origin);
  check_format(reader, origin);
  Manifest manifest;
  manifest.library_version = reader.string("library_version");
  manifest.tag = reader.string("tag");
  manifest.run = read_run(reader);
  manifest.sequence = reader.integer("sequence", 0, kMaxSequence);
  manifest.latest = reader.boolean("latest");
  manifest.world_size = static_cast<int>(reader.integer("world_size", 1, kMaxWorldSize));
  manifest.stage = static_cast<int>(reader.integer("stage", 0, 3));
  manifest.frozen_excluded = reader.boolean("frozen_excluded");
  manifest.chunk_bytes = reader.integer("chunk_bytes", kMinChunkBytes, kMaxChunkBytes);
  manifest.shards = shards_from_json(reader, manifest, origin);
  manifest.parameters = parameters_from_json(reader, origin);
  manifest.tensors = tensors_from_json(reader, manifest.world_size, origin);
  manifest.training = training_from_json(reader.at("training"), origin);
  manifest.config_json = reader.at("config").dump();
  check_host(reader.at("host"), has_tensor(manifest.tensors), origin);
  manifest.host_json = reader.at("host").dump();
  return manifest;
}

}  // namespace zeropage::checkpoint
