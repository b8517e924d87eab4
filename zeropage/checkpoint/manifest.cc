#include "zeropage/checkpoint/manifest.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>

#include "zeropage/base/checked.h"
#include "zeropage/base/error.h"
#include "zeropage/checkpoint/digest.h"
#include "zeropage/checkpoint/untrusted_json.h"

namespace zeropage::checkpoint {
namespace {

using nlohmann::json;

// The document is one JSON object: {"digest": "<digest of everything after this line>",\n"manifest": {...}}\n
constexpr std::string_view kHead = "{\"digest\": \"";
constexpr std::string_view kHeadEnd = "\",\n";
constexpr std::size_t kDigestDigits = 32;
constexpr const char* kFormatName = "zeropage-checkpoint";
constexpr int kMaxWorldSize = 65536;
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

json tensor_to_json(const TensorRecord& tensor) {
  json segments = json::array();
  for (const auto& segment : tensor.segments) segments.push_back({segment.rank, segment.offset, segment.numel});
  return {{"name", tensor.info.name},
          {"dtype", tensor.info.dtype},
          {"shape", tensor.info.shape},
          {"segments", std::move(segments)}};
}

/// Rank, offset and extent of each segment; they must cover [0, numel) in order.
void read_segments(const ObjectReader& reader, int world_size, const std::string& where, TensorRecord& tensor) {
  const std::int64_t numel = shape_numel(tensor.info.shape, where);
  std::set<std::int64_t> ranks;
  std::int64_t end = 0;
  for (const json& item : reader.array("segments")) {
    const json wrapped = {{"segment", item}};
    const auto numbers = ObjectReader(wrapped, where).integers("segment");
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
    tensor.info = {entry.text("name"), entry.text("dtype"), entry.integers("shape")};
    const std::string where = fmt::format("{}, tensor '{}'", origin, tensor.info.name);
    if (!names.insert(tensor.info.name).second) throw CheckpointError(where + ": is there twice");
    dtype_bytes(tensor.info.dtype, where);
    read_segments(entry, world_size, where, tensor);
    tensors.push_back(std::move(tensor));
  }
  return tensors;
}

std::vector<ParameterRecord> parameters_from_json(const ObjectReader& reader, const std::string& origin) {
  std::vector<ParameterRecord> parameters;
  for (const json& item : reader.array("parameters")) {
    const ObjectReader entry(item, origin + ", parameters");
    ParameterRecord parameter;
    parameter.name = entry.text("name");
    for (const json& alias : entry.array("aliases")) {
      const json wrapped = {{"alias", alias}};
      parameter.aliases.push_back(ObjectReader(wrapped, origin + ", parameters").text("alias"));
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
    ShardRecord shard{entry.integer("bytes", 1), entry.text("digests")};
    if (static_cast<std::int64_t>(shard.digests.size()) !=
        ceil_div(shard.bytes, manifest.chunk_bytes) * kDigestDigitsPerChunk) {
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

/// The part of the text that the digest covers.
std::string_view checked_body(std::string_view text, const std::string& origin) {
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

}  // namespace

std::string shard_file_name(int rank, int world_size) {
  return fmt::format("shard-{:05}-of-{:05}.safetensors", rank, world_size);
}

std::string manifest_to_text(const Manifest& manifest) {
  json parameters = json::array(), tensors = json::array(), shards = json::array();
  for (const auto& parameter : manifest.parameters) {
    parameters.push_back({{"name", parameter.name},
                          {"aliases", parameter.aliases},
                          {"trainable", parameter.trainable},
                          {"updates", parameter.updates},
                          {"order", parameter.order}});
  }
  for (const auto& tensor : manifest.tensors) tensors.push_back(tensor_to_json(tensor));
  for (const auto& shard : manifest.shards) shards.push_back({{"bytes", shard.bytes}, {"digests", shard.digests}});
  const json body = {{"format", kFormatName},
                     {"version", kFormatVersion},
                     {"library_version", manifest.library_version},
                     {"tag", manifest.tag},
                     {"sequence", manifest.sequence},
                     {"latest", manifest.latest},
                     {"world_size", manifest.world_size},
                     {"stage", manifest.stage},
                     {"frozen_excluded", manifest.frozen_excluded},
                     {"chunk_bytes", manifest.chunk_bytes},
                     {"shards", std::move(shards)},
                     {"parameters", std::move(parameters)},
                     {"tensors", std::move(tensors)},
                     {"training", training_to_json(manifest.training)},
                     {"config", json::parse(manifest.config_json)},
                     {"host", json::parse(manifest.host_json)}};
  const std::string text = fmt::format("\"manifest\": {}}}\n", body.dump());
  return fmt::format("{}{}{}{}", kHead, digest128(text), kHeadEnd, text);
}

Manifest manifest_from_text(const std::string& text, const std::string& origin) {
  const json document = parse_untrusted(fmt::format("{{{}", checked_body(text, origin)), origin);
  const ObjectReader reader(ObjectReader(document, origin).at("manifest"), origin);
  if (reader.text("format") != kFormatName) throw CheckpointError(origin + ": this is not a checkpoint of zeropage");
  const auto version = reader.integer("version", 0);
  if (version != kFormatVersion) {
    throw CheckpointError(
        fmt::format("{}: has format version {}; this release reads version {}: use the release that "
                    "wrote it ({})",
                    origin, version, kFormatVersion, reader.text("library_version")));
  }
  Manifest manifest;
  manifest.library_version = reader.text("library_version");
  manifest.tag = reader.text("tag");
  manifest.sequence = reader.integer("sequence", 0);
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
  manifest.host_json = reader.at("host").dump();
  return manifest;
}

}  // namespace zeropage::checkpoint
