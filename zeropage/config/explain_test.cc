/// Catches a key that is missing in the comparison, a refused key that hides the others, and a verdict that differs
/// from the key's effect in training.
#include "zeropage/config/explain.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

namespace zeropage::config {
namespace {

const ExplainedKey& key_of(const Explanation& explanation, const std::string& path) {
  static const ExplainedKey kNone;
  const auto found = std::ranges::find(explanation.keys, path, &ExplainedKey::path);
  return found == explanation.keys.end() ? kNone : *found;
}

const std::string kCompared = R"({
  "train_batch_size": 16,
  "gradient_accumulation_steps": "auto",
  "bf16": {"enabled": true, "check_grad_overflow": true},
  "fp16": {"enabled": false, "loss_scale": 128},
  "optimizer": {"type": "Muon", "params": {"lr": 0.02, "torch_adam": true}},
  "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": "auto"}},
  "zero_optimization": {"stage": 2, "contiguous_gradients": true,
                        "offload_optimizer": {"device": "none", "pin_memory": false}}
})";

TEST(Explain, says_of_each_key_what_it_does) {
  const Explanation explanation = explain(kCompared, "ds.json", 2);
  const auto verdict = [&](const std::string& path) { return key_of(explanation, path).verdict; };
  EXPECT_EQ(explanation.count(Verdict::kRefused), 0);
  EXPECT_EQ(explanation.keys.size(), 15u);
  EXPECT_EQ(key_of(explanation, "train_batch_size").value, "16");
  EXPECT_EQ(key_of(explanation, "train_batch_size").line, 2);
  EXPECT_EQ(verdict("train_batch_size"), Verdict::kSame);
  EXPECT_NE(key_of(explanation, "gradient_accumulation_steps").text.find("the training library fills it in"),
            std::string::npos);
  EXPECT_EQ(verdict("bf16.enabled"), Verdict::kSame);
  EXPECT_EQ(verdict("bf16.check_grad_overflow"), Verdict::kDifferent);
  EXPECT_EQ(verdict("fp16.enabled"), Verdict::kSame) << "it is off, so nothing about it differs";
  EXPECT_EQ(verdict("fp16.loss_scale"), Verdict::kNoEffect);
  EXPECT_EQ(key_of(explanation, "fp16.loss_scale").text, "the section is off (fp16.enabled)");
  EXPECT_EQ(verdict("optimizer.type"), Verdict::kDifferent);
  EXPECT_NE(key_of(explanation, "optimizer.type").text.find("clipped before"), std::string::npos);
  EXPECT_EQ(verdict("optimizer.params.torch_adam"), Verdict::kNoEffect);
  EXPECT_NE(key_of(explanation, "scheduler.params.warmup_num_steps").text.find("otherwise the default, 1000"),
            std::string::npos);
  EXPECT_EQ(key_of(explanation, "zero_optimization.contiguous_gradients").text,
            "Gradients are always in one flat buffer per page.");
  EXPECT_EQ(verdict("zero_optimization.offload_optimizer.pin_memory"), Verdict::kNoEffect);
}

TEST(Explain, lists_absent_keys_whose_defaults_differ) {
  const auto paths = [](const std::string& text) {
    std::vector<std::string> found;
    for (const auto& other : explain(text, "ds.json", 0).defaults) found.push_back(other.path);
    return found;
  };
  const auto absent = paths("{}");
  EXPECT_EQ(std::ranges::count(absent, "gradient_clipping"), 1);
  EXPECT_EQ(std::ranges::count(paths(R"({"gradient_clipping": 0.0})"), "gradient_clipping"), 0);
  EXPECT_EQ(std::ranges::count(paths(R"({"gradient_clipping": "auto"})"), "gradient_clipping"), 0);
}

TEST(Explain, goes_on_after_a_refused_key) {
  const Explanation explanation = explain(R"({
  "train_batch_size": "sixteen",
  "optimizer": {"type": "OneBitAdam", "params": {"lr": 1}},
  "amp": {"enabled": true},
  "zero_optimization": {"stage": 7, "zenflow": {"topk_ratio": 0.1}, "stgae3": 1, "offload_param": 5},
  "scheduler": {"type": "WarmupDecayLR"},
  "elasticity": {"enabled": true},
  "steps_per_print": 10
})",
                                          "ds.json", 2);
  std::vector<std::string> refused;
  for (const auto& key : explanation.keys) {
    if (key.verdict == Verdict::kRefused) refused.push_back(key.path);
  }
  EXPECT_EQ(refused, (std::vector<std::string>{"train_batch_size", "optimizer.type", "amp", "zero_optimization.stage",
                                               "zero_optimization.stgae3", "zero_optimization.zenflow",
                                               "zero_optimization.offload_param", "scheduler.params.total_num_steps",
                                               "elasticity.enabled"}));
  EXPECT_EQ(key_of(explanation, "steps_per_print").verdict, Verdict::kSame);
  EXPECT_NE(key_of(explanation, "optimizer.type").text.find("removed from DeepSpeed in 2026"), std::string::npos);
}

TEST(Explain, takes_auto_for_filled_in) {
  const Explanation decay = explain(R"({"train_batch_size": 4, "scheduler": {"type": "WarmupDecayLR",
      "params": {"total_num_steps": "auto"}}})",
                                    "ds.json", 2);
  EXPECT_EQ(decay.count(Verdict::kRefused), 0);
  EXPECT_EQ(key_of(decay, "scheduler.params.total_num_steps").text,
            "the training library fills it in; otherwise it is an error");
}

TEST(Explain, checks_rules_between_keys) {
  const Explanation batch = explain(R"({"train_batch_size": 3})", "ds.json", 2);
  EXPECT_EQ(key_of(batch, "train_batch_size").verdict, Verdict::kRefused);
  EXPECT_NE(key_of(batch, "train_batch_size").text.find("expected a multiple of"), std::string::npos);
  const Explanation missing =
      explain(R"({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "nvme"}}})", "ds.json", 0);
  EXPECT_EQ(key_of(missing, "zero_optimization.offload_optimizer.nvme_path").verdict, Verdict::kRefused);
}

TEST(Explain, prints_an_aligned_table_with_reasons) {
  const std::string text = explanation_text(explain(kCompared, "ds.json", 2), "ds.json");
  EXPECT_TRUE(text.starts_with("ds.json, as DeepSpeed's configuration\n\nline  key ")) << text;
  EXPECT_NE(text.find("\n2     train_batch_size                                16          supported: same meaning\n"),
            std::string::npos)
      << text;
  EXPECT_NE(text.find("\n      the section is off (fp16.enabled)\n"), std::string::npos) << text;
  EXPECT_NE(
      text.find(
          "9 supported with the same meaning, 2 supported with a different meaning, 4 without effect, 0 refused\n"),
      std::string::npos)
      << text;
}

TEST(Explain, prints_json) {
  const auto parsed = nlohmann::json::parse(explanation_json(explain(kCompared, "ds.json", 2)));
  EXPECT_EQ(parsed["keys"].size(), 15u);
  EXPECT_EQ(parsed["keys"][0]["key"], "train_batch_size");
  EXPECT_EQ(parsed["keys"][0]["verdict"], "supported: same meaning");
  EXPECT_EQ(parsed["defaults"][0]["key"], "gradient_clipping");
}

}  // namespace
}  // namespace zeropage::config
