/// Would catch: effective JSON that is not a configuration itself or hides a key, wrong sources in the listing, a stale
/// docs/config.md, tables with two keys of one name, with a key without documentation, or with a default that is out of
/// range.
#include "zeropage/config/effective.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>

#include "zeropage/base/json_text.h"
#include "zeropage/config/convert.h"

namespace zeropage::config {
namespace {

const std::string kString = R"({
  "train_batch_size": 16,
  "scheduler": {"type": "WarmupDecayLR", "params": {"total_num_steps": 10}},
  "optimizer": {"type": "Adam", "params": {"betas": [0.5, 0.75]}},
  "zero_optimization": {"max_live_parameters": 5e3,
                        "sub_group_size": 1e9},
  "steps_per_print": Infinity
})";

TEST(EffectiveJson, reads_back_as_itself) {
  for (const std::string& text : {kString, std::string(R"({"train_batch_size": 2, "zero_optimization": true})")}) {
    const std::string once = Config::from_json(text, 2).effective_json;
    EXPECT_EQ(Config::from_json(once, 2).effective_json, once);
  }
}

TEST(EffectiveJson, does_not_depend_on_spelling_but_on_values) {
  const auto json = [](const std::string& text) { return Config::from_json(text, 2).effective_json; };
  EXPECT_EQ(json(R"({"zero_optimization": {"max_live_parameters": 5e3}, "train_batch_size": 4})"),
            json(R"({"train_batch_size": 4, "zero_optimization": {"stage3_max_live_parameters": 5000}, "wandb": {}})"));
  EXPECT_NE(json(R"({"train_batch_size": 4})"), json(R"({"train_batch_size": 4, "gradient_clipping": 1})"));
}

/// Value and source of a key in the listing, single-spaced.
std::string listed(const std::string& listing, const std::string& key) {
  const std::size_t at = listing.find("\n" + key + " ");
  if (at == std::string::npos) return "";
  const std::size_t start = at + 1 + key.size();
  std::string line;
  for (char c : listing.substr(start, listing.find('\n', start) - start)) {
    if (c != ' ' || (!line.empty() && line.back() != ' ')) line += c;
  }
  return line;
}

TEST(Describe, lists_values_with_their_sources) {
  const std::string listing = describe(kString, "ds.json", 2);
  EXPECT_TRUE(listing.starts_with("ds.json, world size 2\n"));
  EXPECT_EQ(listed(listing, "train_batch_size"), "16 line 2");
  EXPECT_EQ(listed(listing, "train_micro_batch_size_per_gpu"), "8 derived");
  EXPECT_EQ(listed(listing, "optimizer.params.betas"), "[0.5,0.75] line 4");
  EXPECT_EQ(listed(listing, "optimizer.params.eps"), "1e-08 default");
  EXPECT_EQ(listed(listing, "zero_optimization.stage3_max_live_parameters"), "5000 line 5");
  EXPECT_EQ(listed(listing, "zero_optimization.sub_group_size"), "1000000000 line 6 (accepted, no effect)");
  EXPECT_EQ(listed(listing, "scheduler.params.total_num_steps"), "10 line 3");
  EXPECT_EQ(listed(listing, "scheduler.params.cycle_min_lr"), "") << "keys of another schedule do not apply";
  EXPECT_EQ(listed(listing, "graph_harvesting"), "") << "keys that are not built are left out";
}

TEST(Describe, leaves_batch_sizes_open_without_a_world_size) {
  EXPECT_EQ(listed(describe(kString, "ds.json", 0), "train_micro_batch_size_per_gpu"), "null default");
}

TEST(Tables, are_consistent) {
  for (const Section& section : sections()) {
    EXPECT_FALSE(section.doc.empty()) << section.path;
    std::set<std::string> names;
    for (const Key& key : section.keys) {
      const std::string path = section.path_of(key.name);
      EXPECT_FALSE(key.doc.empty()) << path;
      EXPECT_TRUE(names.insert(key.name).second) << path << " is listed twice";
      for (const std::string& alias : key.aliases) EXPECT_TRUE(names.insert(alias).second) << path << ": " << alias;
      EXPECT_FALSE(is_section_path(path)) << path << " is a key and a section";
      if (std::holds_alternative<std::monostate>(key.default_value)) continue;
      const Converted converted = convert(key, json::parse(to_text(key.default_value), path));
      EXPECT_EQ(converted.error, "") << path;
      EXPECT_EQ(converted.value, key.default_value) << path << ": the default has another type than the key";
    }
    EXPECT_TRUE(section.switch_key.empty() || section.find(section.switch_key) != nullptr) << section.path;
  }
}

TEST(Reference, docs_config_md_is_up_to_date) {
  namespace fs = std::filesystem;
  const fs::path path = fs::path(__FILE__).parent_path().parent_path().parent_path() / "docs" / "config.md";
  if (std::getenv("ZEROPAGE_WRITE_DOCS") != nullptr) std::ofstream(path, std::ios::binary) << reference_markdown();
  std::ifstream file(path, std::ios::binary);
  const std::string committed(std::istreambuf_iterator<char>(file), {});
  EXPECT_TRUE(committed == reference_markdown()) << "docs/config.md differs from the tables: run config_tests with "
                                                    "ZEROPAGE_WRITE_DOCS=1 and commit the file";
}

}  // namespace
}  // namespace zeropage::config
