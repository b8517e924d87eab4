#include "zeropage/checkpoint/manifest_summary.h"

#include <fmt/format.h>

#include <charconv>
#include <nlohmann/json.hpp>
#include <vector>

#include "zeropage/base/checked.h"
#include "zeropage/base/error.h"
#include "zeropage/checkpoint/manifest.h"
#include "zeropage/checkpoint/untrusted_json.h"

namespace zeropage::checkpoint {
namespace {

using nlohmann::json;

/// Builds only the small values of a manifest that we write ourselves, and the sizes of the shards: no long lists, and
/// no values of the program.
class Scanner : public nlohmann::json_sax<json> {
 public:
  explicit Scanner(const std::string& origin) : origin_(origin) {}

  json head = json::object();
  std::int64_t shard_bytes = 0;

  bool null() override { return value(nullptr); }
  bool boolean(bool given) override { return value(given); }
  bool number_integer(number_integer_t given) override { return value(given); }
  bool number_unsigned(number_unsigned_t given) override { return value(given); }
  bool number_float(number_float_t given, const string_t& text) override { return value(given); }
  bool string(string_t& given) override { return value(given); }
  bool binary(binary_t& given) override { return true; }
  bool start_object(std::size_t size) override { return open(); }
  bool start_array(std::size_t size) override { return open(); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }

  bool key(string_t& name) override {
    path_.back() = name;
    // All needed values have been read: releases that write `run` write the lists last.
    return !(path_.size() == kFieldDepth && path_[0] == "manifest" && name == "parameters" && head.contains("run") &&
             head.contains("shards"));
  }

  bool parse_error(std::size_t position, const std::string& token, const json::exception& error) override {
    throw CheckpointError(fmt::format("{}: expected JSON, got a syntax error at byte {}", origin_, position));
  }

 private:
  static constexpr std::size_t kFieldDepth = 2;  ///< the document's object and the manifest's

  bool value(const json& given) {
    if (path_.empty() || path_[0] != "manifest") return true;
    if (path_.size() == kFieldDepth) head[path_[1]] = given;
    const bool in_training = path_.size() == kFieldDepth + 1 && path_[1] == "training";
    if (in_training) head["training"][path_[2]] = given;
    if (path_.size() == kFieldDepth + 2 && path_[1] == "shards" && path_[3] == "bytes") {
      const bool fits =
          given.is_number_unsigned() && given.get<std::uint64_t>() <= static_cast<std::uint64_t>(INT64_MAX);
      if (!fits) throw CheckpointError(fmt::format("{}, shards: expected an integer of 63 bits at 'bytes'", origin_));
      shard_bytes = checked_add(shard_bytes, given.get<std::int64_t>(), origin_ + ", bytes of all shards");
    }
    return true;
  }
  bool open() {
    if (path_.size() == kFieldDepth && path_[1] == "shards") head["shards"] = true;
    if (path_.size() >= static_cast<std::size_t>(kMaxJsonDepth)) {
      throw CheckpointError(fmt::format("{}: expected at most {} nested values, got more", origin_, kMaxJsonDepth));
    }
    path_.emplace_back();
    return true;
  }
  bool close() {
    path_.pop_back();
    return true;
  }

  const std::string& origin_;
  std::vector<std::string> path_;  ///< the keys of the current position; an empty string for a list
};

}  // namespace

ManifestSummary summary_from_text(std::string_view text, const std::string& origin) {
  const std::string document = fmt::format("{{{}", manifest_body(text, origin));
  Scanner scanner(origin);
  json::sax_parse(document, &scanner);
  const ObjectReader reader(scanner.head, origin);
  check_format(reader, origin);
  ManifestSummary summary;
  summary.tag = reader.string("tag");
  summary.run = read_run(reader);
  summary.sequence = reader.integer("sequence", 0, kMaxSequence);
  summary.latest = reader.boolean("latest");
  summary.global_steps = ObjectReader(reader.at("training"), origin + ", training").integer("global_steps", 0);
  summary.world_size = static_cast<int>(reader.integer("world_size", 1, kMaxWorldSize));
  summary.stage = static_cast<int>(reader.integer("stage", 0, 3));
  summary.shard_bytes = scanner.shard_bytes;
  return summary;
}

std::int64_t claimed_sequence(std::string_view text) {
  constexpr std::string_view kKey = "\"sequence\":";
  const auto at = text.find(kKey);
  if (at == std::string_view::npos) return -1;
  const char* first = text.data() + at + kKey.size();
  std::int64_t sequence = -1;
  const auto [end, error] = std::from_chars(first, text.data() + text.size(), sequence);
  // The digits must end before the end of the text, otherwise some may be missing.
  const bool whole = error == std::errc() && end != text.data() + text.size() && (*end == ',' || *end == '}');
  return whole && sequence >= 0 && sequence <= kMaxSequence ? sequence : -1;
}

}  // namespace zeropage::checkpoint
