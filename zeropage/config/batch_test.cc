/// Would catch: a wrong row of the batch rule (errors are in errors/batch_*.json), sizes that are computed although the
/// world size is unknown, derived values missing from the effective configuration.
#include "zeropage/config/batch.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace zeropage::config {
namespace {

struct Case {
  const char* text;
  int world_size;
  std::int64_t train, micro, steps;
};

TEST(Batch, each_combination_that_determines_the_sizes) {
  const Case cases[] = {
      {R"({"train_batch_size": 64, "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 8})", 2, 64, 4,
       8},
      {R"({"train_batch_size": 64, "train_micro_batch_size_per_gpu": 4})", 2, 64, 4, 8},
      {R"({"train_batch_size": 64, "gradient_accumulation_steps": 8})", 2, 64, 4, 8},
      {R"({"train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 8})", 2, 64, 4, 8},
      {R"({"train_batch_size": 64})", 2, 64, 32, 1},
      {R"({"train_micro_batch_size_per_gpu": 4})", 2, 8, 4, 1},
      {R"({"train_batch_size": 6e1, "gradient_accumulation_steps": "auto"})", 3, 60, 20, 1},
      {R"({"train_batch_size": 24, "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": 2})", 3, 24,
       4, 2},
      {R"({"train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": 2})", 3, 6, 1, 2},
      {R"({"train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto"})", 3, 3, 1, 1},
      {R"({"train_batch_size": 1})", 1, 1, 1, 1},
  };
  for (const Case& c : cases) {
    const Config config = Config::from_json(c.text, c.world_size);
    EXPECT_EQ(config.batch.train_batch_size, c.train) << c.text;
    EXPECT_EQ(config.batch.micro_batch_size, c.micro) << c.text;
    EXPECT_EQ(config.batch.accumulation_steps, c.steps) << c.text;
    const auto effective = nlohmann::json::parse(config.effective_json);
    EXPECT_EQ(effective["train_batch_size"], c.train);
    EXPECT_EQ(effective["train_micro_batch_size_per_gpu"], c.micro);
    EXPECT_EQ(effective["gradient_accumulation_steps"], c.steps);
  }
}

TEST(Batch, stays_open_without_a_world_size) {
  const Config config = Config::from_json(R"({"train_batch_size": 7, "gradient_accumulation_steps": 2})", 0);
  EXPECT_EQ(config.batch.train_batch_size, 7);
  EXPECT_EQ(config.batch.micro_batch_size, 0);
  EXPECT_EQ(config.batch.accumulation_steps, 2);
  EXPECT_EQ(Config::from_json("{}", 0).batch.accumulation_steps, 1);
}

}  // namespace
}  // namespace zeropage::config
