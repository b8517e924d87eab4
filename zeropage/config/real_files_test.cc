/// Files in real_files/ are like the examples of training libraries and of their users. The first line has the result
/// at world size 8: `// expect: loads`, or `// expect: refused | part | part` with parts of the message. Lines `//
/// says: part` follow, one for each note except those about "auto". Catches a valid file of DeepSpeed that is refused
/// without need, a key that is dropped without a message, and a comparison (explain) that contradicts training.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>

#include "zeropage/base/error.h"
#include "zeropage/config/effective.h"
#include "zeropage/config/explain.h"

namespace zeropage::config {
namespace {

namespace fs = std::filesystem;

constexpr int kWorldSize = 8;

struct Expected {
  bool loads = false;
  std::vector<std::string> parts = {};  ///< of the message
  std::vector<std::string> notes = {};
};

Expected expected_of(const std::string& text) {
  Expected expected;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with("// says: ")) expected.notes.push_back(line.substr(9));
    if (!line.starts_with("// expect: ")) continue;
    expected.loads = line == "// expect: loads";
    std::string rest = line.substr(11);
    for (std::size_t bar; (bar = rest.find(" | ")) != std::string::npos;) {
      rest = rest.substr(bar + 3);
      expected.parts.push_back(rest.substr(0, rest.find(" | ")));
    }
  }
  return expected;
}

void expect_notes(const std::string& name, const std::string& text, const std::vector<std::string>& expected) {
  std::vector<std::string> said = notes(text, name);
  std::erase_if(said, [](const std::string& note) { return note.find("nothing filled in the value") != note.npos; });
  if (text.find("\"gradient_clipping\": \"auto\"") != std::string::npos) {
    std::erase_if(said, [](const std::string& note) { return note.find("gradient_clipping is absent") != note.npos; });
  }
  for (const std::string& part : expected) {
    EXPECT_EQ(std::ranges::count_if(said, [&](const auto& note) { return note.find(part) != note.npos; }), 1)
        << name << ": " << part;
  }
  EXPECT_EQ(said.size(), expected.size()) << name << ": " << testing::PrintToString(said);
}

void check_file(const std::string& name, const std::string& text) {
  const Expected expected = expected_of(text);
  const int refused = explain(text, name, kWorldSize).count(Verdict::kRefused);
  try {
    Config::from_json(text, kWorldSize, name);
    EXPECT_TRUE(expected.loads) << name << " was accepted";
    EXPECT_EQ(refused, 0) << name;
    expect_notes(name, text, expected.notes);
  } catch (const ConfigError& error) {
    const std::string message = error.what();
    EXPECT_FALSE(expected.loads) << message;
    EXPECT_FALSE(expected.parts.empty()) << name;
    for (const std::string& part : expected.parts) {
      EXPECT_NE(message.find(part), std::string::npos) << name << "\n  expected: " << part << "\n  " << message;
    }
  }
}

TEST(RealFiles, load_or_are_refused_with_the_right_line) {
  int count = 0;
  for (const auto& entry : fs::directory_iterator(fs::path(__FILE__).parent_path() / "real_files")) {
    std::ifstream file(entry.path(), std::ios::binary);
    check_file(entry.path().filename().string(), {std::istreambuf_iterator<char>(file), {}});
    ++count;
  }
  EXPECT_GE(count, 30);
}

}  // namespace
}  // namespace zeropage::config
