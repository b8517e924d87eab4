/// Would catch: accepting what JSON forbids or refusing what it allows (compared with nlohmann/json), wrong lines or
/// key paths in messages, lost precision of integers, crashes on arbitrary bytes.
#include "zeropage/base/json_text.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <random>

#include "zeropage/base/error.h"

namespace zeropage::json {
namespace {

std::string error_of(std::string_view text) {
  try {
    parse(text, "f.json");
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "no error";
}

bool contains(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }

TEST(JsonText, keeps_lines_order_and_exact_numbers) {
  const Node root =
      parse("{\n\"b\": 9223372036854775807, // comment \"{\n/* two\nlines */ \"a\": [5e8,\n 5.5, -0.0]\n}", "f");
  ASSERT_EQ(root.members.size(), 2u);
  EXPECT_EQ(root.members[0].name, "b");
  EXPECT_EQ(root.members[0].line, 2);
  EXPECT_EQ(root.members[0].value.integer, INT64_MAX);
  EXPECT_EQ(root.members[1].line, 4);
  const std::vector<Node>& items = root.members[1].value.items;
  EXPECT_EQ(items[0].integer, 500'000'000);
  EXPECT_EQ(items[1].line, 5);
  EXPECT_FALSE(items[1].integer.has_value());
  EXPECT_EQ(items[1].number, 5.5);
  EXPECT_EQ(items[2].integer, 0);
}

TEST(JsonText, unescapes_strings) {
  EXPECT_EQ(parse(R"("a\n\u00e9\ud83d\ude00\/")", "f").text, "a\n\xC3\xA9\xF0\x9F\x98\x80/");
}

TEST(JsonText, not_finite_numbers_are_values_of_their_own) {
  EXPECT_EQ(parse("NaN", "f").kind, Kind::kNotFinite);
  EXPECT_EQ(parse("-Infinity", "f").text, "-Infinity");
}

TEST(JsonText, errors_name_origin_line_and_key) {
  EXPECT_TRUE(contains(error_of("{\n\"zero\": {\"stage\": ,}}"), "f.json:2: zero.stage: expected a value"));
  EXPECT_TRUE(
      contains(error_of("{\"a\": 1,\n\"a\": 2}"), "f.json:2: a: expected each key once, got this key on line 1"));
  EXPECT_TRUE(contains(error_of("{\"a\": 1,}"), "remove the comma"));
  EXPECT_TRUE(contains(error_of("{\"a\": True}"), "JSON writes true"));
  EXPECT_TRUE(contains(error_of("{\"a\": 1e999}"), "a: expected a number that a double can hold"));
  EXPECT_TRUE(contains(error_of("{\"a\": 1"), "the end of the text"));
  EXPECT_TRUE(contains(error_of(""), "empty text"));
  EXPECT_TRUE(contains(error_of("{/* open"), "expected */"));
  EXPECT_TRUE(contains(error_of("\"\xFF\""), "UTF-8"));
  EXPECT_TRUE(contains(error_of(std::string(kMaxDocumentBytes + 1, ' ')), "expected at most 1048576 bytes"));
  EXPECT_TRUE(contains(error_of(std::string(100000, '[')), "expected at most 64 nested"));
}

TEST(JsonText, quoted_is_safe_on_a_terminal) {
  EXPECT_EQ(quote("a\x1b[2J\n\xFF"), "\"a\\x1b[2J\\x0a\\xff\"");
  EXPECT_LT(quote(std::string(5000, 'x')).size(), 100u);
}

TEST(JsonText, agrees_with_nlohmann_on_mutated_documents) {
  const std::string seed = R"({"a": [1, -2.5e3, true, null, "x\u0041\n"], "b": {"c": {}, "d": []}, "e": 0})";
  std::mt19937 random(1);
  int accepted = 0;
  for (int round = 0; round < 20000; ++round) {
    std::string text = seed;
    for (int edit = static_cast<int>(random() % 3) + 1; edit > 0; --edit) {
      const std::size_t at = random() % text.size();
      if (random() % 2)
        text.erase(at, 1);
      else
        text[at] = random() % 2 ? seed[random() % seed.size()] : static_cast<char>(random());
    }
    // Our parser refuses duplicate keys and accepts # comments. Other tests cover these differences.
    const std::string error = error_of(text);
    if (contains(error, "each key once") || contains(text, "#")) continue;
    EXPECT_EQ(error == "no error", nlohmann::json::accept(text, true)) << text << "\n" << error;
    accepted += error == "no error";
  }
  EXPECT_GT(accepted, 1000) << "many documents should still be valid after the mutations";
}

}  // namespace
}  // namespace zeropage::json
