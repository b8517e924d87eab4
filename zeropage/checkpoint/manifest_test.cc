#include "zeropage/checkpoint/manifest.h"

#include <gtest/gtest.h>

#include <map>
#include <nlohmann/json.hpp>

#include "zeropage/base/digest.h"
#include "zeropage/base/error.h"
#include "zeropage/checkpoint/manifest_summary.h"

namespace zeropage::checkpoint {
namespace {

Manifest example() {
  Manifest manifest;
  manifest.library_version = "0.1.0";
  manifest.run = "0123";
  manifest.tag = "step \"7\"";
  manifest.sequence = 3;
  manifest.latest = false;
  manifest.world_size = 2;
  manifest.stage = 3;
  manifest.frozen_excluded = true;
  manifest.chunk_bytes = 4096;
  manifest.shards = {{4097, std::string(32, 'a')}, {1, std::string(16, 'b')}};
  manifest.parameters = {{"a.weight", {"b.weight"}, true, 7, {1, 0}}, {"empty", {}, false, 0}};
  manifest.tensors = {{{"value/a.weight", "BF16", {2, 3}}, {{1, 0, 2}, {0, 2, 4}}},
                      {{"value/empty", "F32", {0, 9}}, {}}};
  manifest.training = {10, 2, 1, 20, 9, optim::LossScaleState{65536.0, 12, 3, 2}, 640};
  manifest.config_json = R"({"train_batch_size":8})";
  manifest.host_json = R"({"client":[1,"x",null]})";  // any value is allowed
  return manifest;
}

/// `text` with `from` replaced by `to` and a new, right digest, as an attacker or a bug would write it.
std::string forged(const std::string& from, const std::string& to) {
  const std::string text = manifest_to_text(example());
  std::string body = text.substr(text.find('\n') + 1);
  const auto at = body.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  body.replace(at, from.size(), to);
  return "{\"digest\": \"" + digest128(body) + "\",\n" + body;
}

std::string manifest_refusal(const std::string& text) {
  try {
    manifest_from_text(text, "file");
  } catch (const CheckpointError& error) {
    return error.what();
  }
  return "";
}

// Catches a field that is written but not read, or read but not written.
TEST(Manifest, ComesBackAsItWas) { EXPECT_EQ(manifest_from_text(manifest_to_text(example()), "file"), example()); }

// Catches bytes that the digest does not cover.
TEST(Manifest, EverySingleBitFlipIsRefused) {
  const std::string text = manifest_to_text(example());
  for (std::size_t bit = 0; bit < text.size() * 8; ++bit) {
    std::string flipped = text;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << bit % 8));
    ASSERT_NE(manifest_refusal(flipped), "") << "bit " << bit;
  }
  for (std::size_t size = 0; size < text.size(); ++size) ASSERT_NE(manifest_refusal(text.substr(0, size)), "") << size;
}

// Catches a check that is missing: each document has a right digest and one thing wrong.
TEST(Manifest, ForgedDocumentsAreRefusedByWhatIsWrong) {
  const std::vector<std::vector<std::string>> cases = {
      {"\"segments\":[[1,0,2],[0,2,4]]", "\"segments\":[[1,0,2],[0,3,3]]", "segment at 3"},
      {"\"segments\":[[1,0,2],[0,2,4]]", "\"segments\":[[1,0,2],[0,1,5]]", "segment at 1"},
      {"\"segments\":[[1,0,2],[0,2,4]]", "\"segments\":[[1,0,2],[0,2,3]]", "end at 5 of 6"},
      {"\"segments\":[[1,0,2],[0,2,4]]", "\"segments\":[[1,0,2],[1,2,4]]", "rank 1"},
      {"\"segments\":[[1,0,2],[0,2,4]]", "\"segments\":[[1,0,2],[2,2,4]]", "rank 2"},
      {"\"segments\":[[1,0,2],[0,2,4]]", "\"segments\":[[1,0,2],[0,2,-4]]", "not negative"},
      {"\"segments\":[[1,0,2],[0,2,4]]", "\"segments\":[[1,0]]", "a segment is"},
      {"\"shape\":[2,3]", "\"shape\":[4611686018427387904,4611686018427387904]", "too large"},
      {"\"shape\":[2,3]", "\"shape\":[2.5,3]", "not negative"},
      {"\"shape\":[2,3]", "\"shape\":[18446744073709551615]", "not negative"},
      {"\"BF16\"", "\"Q4\"", "'Q4'"},
      {"\"value/empty\"", "\"value/a.weight\"", "twice"},
      {"\"order\":[1,0]", "\"order\":[1,1]", "every dimension once"},
      {"\"order\":[1,0]", "\"order\":[1,2]", "every dimension once"},
      {"\"chunk_bytes\":4096", "\"chunk_bytes\":0", "'chunk_bytes' is 0"},
      {"\"chunk_bytes\":4096", "\"chunk_bytes\":8192", "digits"},
      {"\"world_size\":2", "\"world_size\":3", "2 shards of 3 ranks"},
      {"\"world_size\":2", "\"world_size\":true", "integer"},
      {"\"bytes\":4097", "\"bytes\":9223372036854775807", "digits"},
      {"\"version\":1", "\"version\":2", "format version 2"},
      {"\"sequence\":3", "\"sequence\":3,\"sequence\":4", "twice"},
      {"\"latest\":false", "\"late\":false", "'latest' is missing"},
      {"[1,\"x\",null]", std::string(100000, '['), "nested values"},
      {"\"value/empty\"", "\"value/\\u001b[31m\"", "control characters"},
      {"\"dtype\":\"F32\"", "\"dtype\":\"\\u001b[31m\"", "'\\x1b[31m' is not known"},
      {R"({"client":[1,"x",null]})", "7", "host: expected an object, got 7"},
      {R"([1,"x",null])", R"({"tensor":"none"})", "host.client: expected the name of a tensor of the step"},
      {R"([1,"x",null])", R"({"tensor":7})", "host.client: expected the name of a tensor of the step"},
      {R"([1,"x",null])", R"([{"tuple":{}}])", "host.client: expected a list, got {}"},
      {R"([1,"x",null])", R"({"number":"1e9"})", "host.client: expected a number, got \"1e9\""},
      {R"([1,"x",null])", R"({"a":1})", "host.client: expected a value as"},
      {R"([1,"x",null])", R"({"dict":[["a"]]})", "host.client: expected a pair of key and value"},
      {R"([1,"x",null])", R"({"dict":[[[1],2]]})", "host.client: expected a pair of key and value"},
      {R"("client":[1,"x",null])", R"("optimizer":1)", "host.optimizer: expected a string or null"},
      {R"("client":[1,"x",null])", R"("data":[1,-2])", "host.data: expected null, or an epoch and a number of entries"},
      {R"("client":[1,"x",null])", R"("groups":{"dict":[]})", "host.groups: expected a list"},
      {R"("client":[1,"x",null])", R"("groups":[{"dict":[[1,2]]}])", "host.groups: expected a key that is a string"},
      {R"("client":[1,"x",null])", R"("buffers":[])", "host.buffers: expected a value as"},
      {R"("client":[1,"x",null])", R"("buffers":{"dict":[["a",1]]})", "host.buffers: expected tensors alone"},
  };
  for (const auto& row : cases) {
    const std::string message = manifest_refusal(forged(row[0], row[1]));
    EXPECT_NE(message.find(row[2]), std::string::npos) << row[1].substr(0, 80) << " -> " << message.substr(0, 300);
  }
}

/// A manifest as older releases wrote it: keys in alphabetical order, and no run.
std::string in_the_old_order(const Manifest& manifest) {
  const std::string text = manifest_to_text(manifest);
  auto document = nlohmann::json::parse(text);
  document["manifest"].erase("run");
  const std::string body = "\"manifest\": " + document["manifest"].dump() + "}\n";
  return "{\"digest\": \"" + digest128(body) + "\",\n" + body;
}

// Catches a summary that differs from its manifest, and checkpoints of older releases that cannot be read any more.
TEST(ManifestSummary, SaysWhatTheManifestSays) {
  auto manifest = example();
  for (const auto& text : {manifest_to_text(manifest), in_the_old_order(manifest)}) {
    manifest.run = text == manifest_to_text(example()) ? "0123" : "";
    EXPECT_EQ(manifest_from_text(text, "file"), manifest);
    const auto summary = summary_from_text(text, "file");
    EXPECT_EQ(summary.tag, manifest.tag);
    EXPECT_EQ(summary.run, manifest.run);
    EXPECT_EQ(summary.sequence, 3);
    EXPECT_FALSE(summary.latest);
    EXPECT_EQ(summary.global_steps, 10);
    EXPECT_EQ(summary.world_size, 2);
    EXPECT_EQ(summary.stage, 3);
    EXPECT_EQ(summary.shard_bytes, 4098);
    EXPECT_EQ(claimed_sequence(text), 3);
  }
}

// Catches a list of checkpoints that accepts wrong digests, or values of wrong types.
TEST(ManifestSummary, DamagedManifestsAreRefused) {
  const auto refused = [](const std::string& text) {
    try {
      summary_from_text(text, "file");
    } catch (const CheckpointError&) {
      return true;
    }
    return false;
  };
  const std::string text = manifest_to_text(example());
  for (std::size_t bit = 0; bit < text.size() * 8; ++bit) {
    std::string flipped = text;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << bit % 8));
    ASSERT_TRUE(refused(flipped)) << "bit " << bit;
  }
  for (const auto& [from, to] :
       std::map<std::string, std::string>{{"\"version\":1", "\"version\":2"},
                                          {"\"latest\":false", "\"latest\":0"},
                                          {"\"run\":\"0123\"", "\"run\":1"},
                                          {"\"bytes\":4097", "\"bytes\":-1"},
                                          {"\"stage\":3", "\"stage\":4"},
                                          {"\"sequence\":3", "\"sequence\":9007199254740993"}}) {
    EXPECT_TRUE(refused(forged(from, to))) << to;
  }
}

}  // namespace
}  // namespace zeropage::checkpoint
