#include "zeropage/planner/model.h"

#include <gtest/gtest.h>

#include "zeropage/base/error.h"
#include "zeropage/planner/model_config.h"

namespace zeropage::planner {
namespace {

TEST(ParseCount, TheWaysPeopleWriteIt) {
  EXPECT_EQ(parse_count("7B"), 7'000'000'000);
  EXPECT_EQ(parse_count("1.5b"), 1'500'000'000);
  EXPECT_EQ(parse_count("350M"), 350'000'000);
  EXPECT_EQ(parse_count("1T"), 1'000'000'000'000);
  EXPECT_EQ(parse_count("7e9"), 7'000'000'000);
  EXPECT_EQ(parse_count("124439808"), 124'439'808);
  EXPECT_EQ(parse_count("7_000_000_000"), 7'000'000'000);
}

TEST(ParseCount, AnythingElseIsAnError) {
  for (const char* text : {"", "B", "seven", "7BB", "-7B", "0", "nan", "inf", "1e300", "7B ", "0.1", "7 B", "0x10"}) {
    EXPECT_THROW(parse_count(text), ConfigError) << text;
  }
}

// Catches a wrong exponent in the guess: for GPT-3 and Llama the guess must be right within about 10 %.
TEST(GuessedShape, IsNearKnownModels) {
  const Shape gpt3 = model_of_count("", 175'000'000'000).shape;
  EXPECT_NEAR(gpt3.layers, 96, 5);
  EXPECT_NEAR(gpt3.hidden, 12'288, 600);
  const Shape llama = model_of_count("", 7'000'000'000).shape;
  EXPECT_NEAR(llama.layers, 32, 3);
  EXPECT_NEAR(llama.hidden, 4096, 400);
  EXPECT_TRUE(llama.guessed);
  EXPECT_GE(model_of_count("", 1).shape.layers, 1);
}

TEST(ModelOfParameters, CountsFrozenSmallAndLargest) {
  const Model model = model_of_parameters("m", {1'000'000, 500, 200'000}, {true, true, false}, {true, false, true});
  EXPECT_EQ(model.total_numel, 1'200'500);
  EXPECT_EQ(model.trainable_numel, 1'000'500);
  EXPECT_EQ(model.persistent_numel, 500);
  EXPECT_EQ(model.largest_numel, 1'000'000);
  EXPECT_EQ(model.muon_numel, 1'000'000) << "the frozen matrix has no optimizer";
  EXPECT_THROW(model_of_parameters("m", {}, {}, {}), ConfigError);
  EXPECT_THROW(model_of_parameters("m", {1}, {}, {true}), ConfigError);
  EXPECT_THROW(model_of_parameters("m", {-1}, {true}, {true}), ConfigError);
  EXPECT_THROW(model_of_parameters("m", {INT64_MAX, INT64_MAX}, {true, true}, {false, false}), ConfigError);
}

// Catches a rule for Muon's half that differs from DeepSpeed's, and embeddings that are counted in it.
TEST(Muon, UpdatesMatricesButEmbeddings) {
  EXPECT_TRUE(takes_muon("layers.0.mlp.up_proj.weight", 2));
  EXPECT_TRUE(takes_muon("conv.weight", 4));
  EXPECT_FALSE(takes_muon("layers.0.norm.weight", 1));
  EXPECT_FALSE(takes_muon("model.Embed_tokens.weight", 2));
  EXPECT_FALSE(takes_muon("lm_head.weight", 2));
  const Model llama = parse_model_config(
      R"({"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
      "num_attention_heads": 4, "vocab_size": 1000})",
      "m", "config.json");
  EXPECT_EQ(llama.muon_numel, 2 * (4 * 64 * 64 + 3 * 64 * 128));
  EXPECT_EQ(llama.total_numel - llama.muon_numel, 2 * 1000 * 64 + 5 * 64);
}

TEST(ReadModel, ACountOrAnErrorThatNamesTheWays) {
  EXPECT_EQ(read_model("7B").total_numel, 7'000'000'000);
  EXPECT_EQ(read_model("7B").name, "7B");
  try {
    read_model("no_such_model");
    FAIL();
  } catch (const ConfigError& error) {
    EXPECT_NE(std::string(error.what()).find("got \"no_such_model\""), std::string::npos) << error.what();
  }
  EXPECT_THROW(read_model("no_such/config.json"), IoError);
}

std::int64_t total(const std::string& text) { return parse_model_config(text, "m", "config.json").total_numel; }

// Totals as published with the models (sums over their checkpoints).
TEST(ModelConfig, KnownTotals) {
  EXPECT_EQ(total(
                R"({"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
      "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000})"),
            6'738'415'616);  // Llama 2 7B
  EXPECT_EQ(total(
                R"({"model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
      "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 32000, "rope_scaling": null})"),
            68'976'648'192);  // Llama 2 70B
  EXPECT_EQ(total(
                R"({"model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
      "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": false})"),
            8'030'261'248);  // Llama 3 8B
  EXPECT_EQ(total(
                R"({"model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
      "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000})"),
            7'241'732'096);  // Mistral 7B v0.1
  EXPECT_EQ(total(R"({"model_type": "phi3", "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32,
      "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32064})"),
            3'821'079'552);  // Phi-3 mini
  EXPECT_EQ(total(
                R"({"model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
      "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064})"),
            7'615'616'512);  // Qwen2.5 7B
  EXPECT_EQ(total(R"({"model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
      "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": true})"),
            494'032'768);  // Qwen2.5 0.5B
  EXPECT_EQ(
      total(
          R"({"model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "head_dim": 128,
      "num_attention_heads": 16, "num_key_value_heads": 8, "vocab_size": 151936, "tie_word_embeddings": true})"),
      596'049'920);  // Qwen3 0.6B
  EXPECT_EQ(total(R"({"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024,
      "vocab_size": 50257})"),
            124'439'808);  // GPT-2
  EXPECT_EQ(total(R"({"model_type": "gpt2", "n_embd": 1600, "n_layer": 48, "n_head": 25, "n_positions": 1024,
      "vocab_size": 50257})"),
            1'557'611'200);  // GPT-2 XL
  EXPECT_EQ(total(
                R"({"model_type": "gpt_neox", "hidden_size": 4096, "intermediate_size": 16384, "num_hidden_layers": 32,
      "num_attention_heads": 32, "vocab_size": 50432})"),
            6'857'302'016);  // Pythia 6.9B
  EXPECT_EQ(total(
                R"({"model_type": "gpt_neox", "hidden_size": 6144, "intermediate_size": 24576, "num_hidden_layers": 44,
      "num_attention_heads": 64, "vocab_size": 50432})"),
            20'554'567'680);  // GPT-NeoX 20B
}

TEST(ModelConfig, ExpertsAreHeldByAllAndUsedByFew) {
  const Model mixtral = parse_model_config(
      R"({"model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
      "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, "num_local_experts": 8, "num_experts_per_tok": 2})",
      "Mixtral 8x7B", "config.json");
  EXPECT_EQ(mixtral.total_numel, 46'702'792'704);
  EXPECT_EQ(mixtral.active_numel, 12'879'925'248);
  EXPECT_EQ(mixtral.shape.layers, 32);
  EXPECT_FALSE(mixtral.shape.guessed);
  EXPECT_EQ(
      total(
          R"({"model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768,
      "num_hidden_layers": 48, "head_dim": 128, "num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": 151936,
      "num_experts": 128, "num_experts_per_tok": 8})"),
      30'532'122'624);  // Qwen3 30B A3B
}

void expect_refused(const std::string& text, const std::string& words) {
  try {
    total(text);
    FAIL() << "accepted: " << text;
  } catch (const ConfigError& error) {
    EXPECT_NE(std::string(error.what()).find(words), std::string::npos) << error.what();
  }
}

// The files are not trusted: each error names the key.
TEST(ModelConfig, WhatIsWrongIsNamed) {
  expect_refused("[]", "expected the config.json of a model");
  expect_refused("{", "config.json:1");
  expect_refused("{}", "model_type: expected a string, the key is missing");
  expect_refused(R"({"model_type": 5})", "model_type: expected a string, got 5");
  expect_refused(R"({"model_type": "t5"})", "expected one of gpt2, gpt_neox, llama");
  expect_refused(R"({"model_type": "llama"})", "hidden_size: expected a number, the key is missing");
  expect_refused("{\"model_type\": \"gpt2\",\n\"n_embd\": -1}", "config.json:2: n_embd: expected an integer from 1");
  expect_refused(R"({"model_type": "gpt2", "n_embd": "768"})", "got the text \"768\"");
  expect_refused(R"({"model_type": "llama", "hidden_size": 1e9, "intermediate_size": 1e9, "num_hidden_layers": 1e9,
      "num_attention_heads": 1, "vocab_size": 10})",
                 "parameters of the model");
}

}  // namespace
}  // namespace zeropage::planner
