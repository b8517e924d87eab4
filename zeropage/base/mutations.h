/// \file
/// For tests: the corpus of a fuzz target (fuzz/corpus/), and mutations of it that parsers often handle wrongly.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <string_view>
#include <vector>

namespace zeropage {

/// The seeds of a target, sorted.
inline std::vector<std::string> fuzz_corpus(const std::string& target) {
  std::vector<std::string> inputs;
  const auto root = std::filesystem::path(__FILE__).parent_path().parent_path().parent_path();
  for (const auto& entry : std::filesystem::directory_iterator(root / "fuzz" / "corpus" / target)) {
    std::ifstream in(entry.path(), std::ios::binary);
    inputs.emplace_back((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  }
  std::sort(inputs.begin(), inputs.end());
  return inputs;
}

/// One input with one to four mutations that parsers often handle wrongly.
inline std::string mutated(const std::vector<std::string>& inputs, std::mt19937& random) {
  static const std::vector<std::string> kPieces = {"9223372036854775807",
                                                   "-1",
                                                   "18446744073709551615",
                                                   "4611686018427387904",
                                                   "0",
                                                   "1e308",
                                                   "null",
                                                   "[]",
                                                   "{}",
                                                   "[[",
                                                   "]]",
                                                   "\"",
                                                   "\\u0000",
                                                   "\xff",
                                                   ",",
                                                   ":",
                                                   "true",
                                                   "0.5",
                                                   "\"a\":",
                                                   "[0,0,0]"};
  std::string text = inputs[random() % inputs.size()];
  for (int change = 1 + static_cast<int>(random() % 4); change > 0 && !text.empty(); --change) {
    const std::size_t at = random() % text.size();
    const std::size_t length = std::min<std::size_t>(text.size() - at, 1 + random() % 16);
    const std::string& other = inputs[random() % inputs.size()];
    const std::size_t from = random() % other.size();
    switch (random() % 6) {
      case 0: text[at] = static_cast<char>(text[at] ^ (1 << random() % 8)); break;
      case 1: text.erase(at, length); break;
      case 2: text.insert(at, kPieces[random() % kPieces.size()]); break;
      case 3: text.replace(at, length, kPieces[random() % kPieces.size()]); break;
      case 4: text.insert(at, other.substr(from, 1 + random() % 64)); break;
      default: {  // another number
        const auto digit = text.find_first_of("0123456789", at);
        if (digit == std::string::npos) break;
        const auto end = std::min(text.find_first_not_of("0123456789", digit), text.size());
        text.replace(digit, end - digit, kPieces[random() % 5]);
      }
    }
  }
  return text;
}

/// Runs the seeds, and 20,000 mutations of them. The target returns whether it accepts its input, and throws for a
/// defect.
inline void drive_with_mutations(const std::string& name, bool (*target)(std::string_view)) {
  const auto inputs = fuzz_corpus(name);
  EXPECT_GE(inputs.size(), 3u);
  const auto sound = std::count_if(inputs.begin(), inputs.end(), [&](const auto& input) { return target(input); });
  EXPECT_GE(sound, 2) << "refused seeds test little";
  std::mt19937 random(1);
  for (int i = 0; i < 20'000; ++i) target(mutated(inputs, random));
}

}  // namespace zeropage
