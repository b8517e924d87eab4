#include "zeropage/launch/quote.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <iterator>
#include <random>

#include "zeropage/base/error.h"
#include "zeropage/launch/spawn.h"
#include "zeropage/launch/system_call.h"

namespace zeropage::launch {
namespace {

using Words = std::vector<std::string>;

std::string random_word(std::mt19937& random) {
  static const std::string kNasty = "'\"\\$`!*?[]{}()<>|&;#~ \t\n\r=%-+,.:/@^";
  std::string word;
  for (int left = static_cast<int>(random() % 24); left > 0; --left) {
    word += random() % 2 ? kNasty[random() % kNasty.size()] : static_cast<char>(1 + random() % 255);
  }
  return word;
}

/// Runs the line in a real shell. Returns the arguments that a program gets, each followed by a zero byte.
std::string through_shell(const std::string& line) {
  const std::string path = testing::TempDir() + "quote_test_" + std::to_string(::getpid());
  std::ofstream(path) << "printf '%s\\0' " << line << "\n";
  Pipe out = make_pipe();
  RankPlan plan;
  plan.argv = {"/bin/sh", path};
  SpawnContext context;
  context.out_fd = out.write.get();
  spawn_rank(plan, context);
  out.write.reset();
  std::string text;
  char buffer[65536];
  for (ssize_t got; (got = ::read(out.read.get(), buffer, sizeof(buffer))) > 0;) text.append(buffer, got);
  ::unlink(path.c_str());
  return text;
}

// Catches a byte that a shell interprets, which would be an injection.
TEST(Quote, TenThousandRandomWordsPassAShellUnchanged) {
  std::mt19937 random(4);
  for (int round = 0; round < 10; ++round) {
    Words words;
    std::string expected;
    for (int i = 0; i < 1000; ++i) {
      words.push_back(random_word(random));
      expected += words.back() + '\0';
    }
    ASSERT_TRUE(through_shell(shell_join(words)) == expected) << "round " << round;
  }
}

TEST(Quote, PlainWordsStayReadable) {
  EXPECT_EQ(shell_join({"ssh", "-p", "22", "/a/b.py", "a b", "", "it's", "A=b"}),
            "ssh -p 22 /a/b.py 'a b' '' 'it'\\''s' 'A=b'");
  EXPECT_THROW(shell_quote(std::string("a\0b", 3)), ConfigError);
}

TEST(Quote, SplitWords) {
  EXPECT_EQ(split_words(" -o 'User=a b'  \"x\\\"y\" c\\ d '' ", "--launcher_args"),
            Words({"-o", "User=a b", "x\"y", "c d", ""}));
  EXPECT_THROW(split_words("a 'b", "--launcher_args"), ConfigError);
}

}  // namespace
}  // namespace zeropage::launch
