#include "zeropage/base/machine_json.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <ctime>
#include <nlohmann/json.hpp>

namespace zeropage::json {
namespace {

constexpr int kDepth = 8;

std::string refusal(std::string_view text) {
  try {
    parse_machine_json(text, kDepth);
  } catch (const SyntaxError& error) {
    return error.what();
  }
  return "";
}

// Catches a value that is lost between the two passes.
TEST(MachineJson, GivesWhatTheTextSays) {
  const auto parsed = parse_machine_json(R"({"a": [1, -2, 2.5, true, null, "x"], "b": {"a": {}}})", kDepth);
  EXPECT_EQ(parsed,
            nlohmann::json({{"a", {1, -2, 2.5, true, nullptr, "x"}}, {"b", {{"a", nlohmann::json::object()}}}}));
}

// Catches a repeated key at any level, also where other objects are between the two.
TEST(MachineJson, AKeyThatAnObjectHasTwiceIsRefused) {
  for (const auto* text : {R"({"a": 1, "a": 2})", R"({"a": {"b": {}}, "c": [1], "a": 2})",
                           R"([{"x": {"a": 1, "b": 2, "a": 3}}])", R"({"\u0061": 1, "a": 2})"}) {
    EXPECT_EQ(refusal(text), "expected each key once in an object, got \"a\" twice") << text;
  }
  EXPECT_EQ(refusal(R"({"a": {"a": {"a": 1}}, "b": [{"a": 1}, {"a": 1}]})"), "");
}

// Catches text that is accepted although it is no JSON, and a nesting that would overflow the stack.
TEST(MachineJson, WhatIsNoDocumentIsRefusedWithThePlace) {
  EXPECT_EQ(refusal(std::string(100'000, '[')), "expected at most 8 nested values, got more");
  EXPECT_EQ(refusal("[[[[[[[[]]]]]]]]"), "");
  for (const auto* text : {"", "{", "{\"a\": 1} x", "[1e999]", "[\"\xff\"]", "[NaN]"}) {
    EXPECT_TRUE(refusal(text).starts_with("expected JSON, got a syntax error at byte"))
        << text << ": " << refusal(text);
  }
}

/// The processor time of reading the header of a file with `tensors` tensors, in seconds.
double seconds_to_read(int tensors) {
  std::string text = "{";
  for (int i = 0; i < tensors; ++i) {
    text += fmt::format(R"({}"tensor.{}": {{"dtype": "F32", "shape": [4], "data_offsets": [{}, {}]}})",
                        i == 0 ? "" : ", ", i, 16 * i, 16 * i + 16);
  }
  text += "}";
  const std::clock_t begun = std::clock();
  EXPECT_EQ(parse_machine_json(text, kDepth).size(), static_cast<std::size_t>(tensors));
  return static_cast<double>(std::clock() - begun) / CLOCKS_PER_SEC;
}

// Catches a cost that grows with the square of the number of tensors in a header (100 times here): 50,000
// entries took more than a minute.
TEST(MachineJson, ALargeObjectOfObjectsTakesTimeInProportion) {
  const double few = seconds_to_read(2'000);
  EXPECT_LT(seconds_to_read(20'000), 40 * few);
}

}  // namespace
}  // namespace zeropage::json
