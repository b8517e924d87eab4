#include "zeropage/launch/lines.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

namespace zeropage::launch {
namespace {

using Words = std::vector<std::string>;

/// Feeds `text` in pieces of `piece_bytes` and returns the resulting lines.
Words split(std::string_view text, std::size_t piece_bytes, bool log_progress = false) {
  LineSplitter splitter(log_progress);
  Words lines;
  const auto on_line = [&](std::string_view line) { lines.emplace_back(line); };
  for (; !text.empty(); text.remove_prefix(std::min(piece_bytes, text.size()))) {
    splitter.feed(text.substr(0, piece_bytes), Time{}, on_line);
    EXPECT_LE(splitter.unfinished().size(), kMaxLineBytes);
  }
  splitter.finish(on_line);
  return lines;
}

// Catches a splitter that is only right if each read ends with a line.
TEST(LineSplitter, PiecesDoNotMatter) {
  for (std::size_t piece : {1, 2, 3, 100}) {
    EXPECT_EQ(split("one\ntwo\n\nthree", piece), Words({"one", "two", "", "three"})) << piece;
    EXPECT_EQ(split("dos\r\nunix\n", piece), Words({"dos", "unix"})) << piece;
    EXPECT_EQ(split("10%\r20%\r30%\nnext\n", piece), Words({"30%", "next"})) << piece;
    EXPECT_EQ(split("\r10%\r20%", piece), Words({"20%"})) << piece;
    EXPECT_EQ(split("50%\r\n", piece), Words({"50%"})) << "a carriage return alone erases nothing";
    EXPECT_EQ(split("50%\r\rx\n", piece), Words({"x"})) << piece;
  }
}

TEST(LineSplitter, ALogSeesProgressNowAndThen) {
  LineSplitter splitter(true);
  Words lines;
  const auto on_line = [&](std::string_view line) { lines.emplace_back(line); };
  for (int second = 0; second < 25; ++second) {
    splitter.feed("\rstep " + std::to_string(second), Time{} + std::chrono::seconds(second), on_line);
  }
  splitter.finish(on_line);
  EXPECT_EQ(lines, Words({"step 0", "step 10", "step 20", "step 24"}));
}

TEST(LineSplitter, AnEndlessLineKeepsMemoryBounded) {
  std::string text(1 << 20, 'x');
  const Words lines = split(text + "\nend\n", 7777);
  std::string joined;
  for (std::size_t i = 0; i + 1 < lines.size(); ++i) joined += lines[i];
  EXPECT_EQ(joined, text) << "nothing is lost";
  EXPECT_EQ(lines.back(), "end");
}

TEST(LineSplitter, CutsBetweenCharacters) {
  std::string text = "a";
  while (text.size() < 2 * kMaxLineBytes) text += "\u20ac";
  for (const std::string& line : split(text, 1000)) EXPECT_NE(static_cast<unsigned char>(line[0]) & 0xC0, 0x80);
}

TEST(Tail, StartsAtTheTraceback) {
  Tail tail;
  const Time start{};
  tail.add("warming up", start);
  EXPECT_FALSE(tail.traceback_time());
  EXPECT_EQ(tail.text(), "warming up\n");
  tail.add("[rank1]: Traceback (most recent call last):", start + std::chrono::seconds(1));
  tail.add("ValueError: x", start + std::chrono::seconds(1));
  tail.add("During handling of the above exception, another exception occurred:", start + std::chrono::seconds(1));
  tail.add("Traceback (most recent call last):", start + std::chrono::seconds(2));
  tail.add("KeyError: y", start + std::chrono::seconds(2));
  EXPECT_EQ(tail.traceback_time(), start + std::chrono::seconds(1)) << "a chain of exceptions began with its cause";
  EXPECT_EQ(tail.text().substr(0, 12), "[rank1]: Tra");
  EXPECT_NE(tail.text().find("KeyError: y\n"), std::string::npos);
}

TEST(Tail, ForgetsOldLines) {
  Tail tail;
  tail.add("Traceback (most recent call last):", Time{});
  for (int i = 0; i < 100'000; ++i) tail.add(std::string(1000, 'x'), Time{});
  EXPECT_FALSE(tail.traceback_time()) << "an error that was caught long ago is not why it failed now";
  EXPECT_LT(tail.text().size(), 300u * 1024);
}

}  // namespace
}  // namespace zeropage::launch
