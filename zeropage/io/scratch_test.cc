#include "zeropage/io/scratch.h"

#include <gtest/gtest.h>

#include "zeropage/io/test_store.h"

namespace zeropage::io {
namespace {

Scratch::Piece put(Scratch& scratch, int which, std::int64_t bytes) {
  return scratch.put("piece", bytes, [&](std::span<std::byte> to, std::int64_t offset) {
    for (std::size_t i = 0; i < to.size(); ++i) to[i] = content(which, 0, offset + static_cast<std::int64_t>(i));
  });
}

std::int64_t same_bytes(Scratch& scratch, const Scratch::Piece& piece, int which) {
  std::int64_t same = 0;
  scratch.get(piece, [&](std::span<std::byte> from, std::int64_t offset) {
    for (std::size_t i = 0; i < from.size(); ++i)
      same += from[i] == content(which, 0, offset + static_cast<std::int64_t>(i));
  });
  return same;
}

// Would catch tiles that are swapped, ends of pieces that are lost, and space that is used twice.
TEST(Scratch, KeepsPiecesOfEverySize) {
  const TestFolder folder;
  Scratch scratch({.folders = {folder.path()}});
  const std::vector<std::int64_t> sizes = {1, 4096, 5'000'001, 4 << 20, 30 << 20, 8 << 20};
  std::vector<Scratch::Piece> pieces(sizes.size());
  for (int round = 0; round < 2; ++round) {
    for (std::size_t i = 0; i < sizes.size(); ++i) pieces[i] = put(scratch, static_cast<int>(i) + round, sizes[i]);
    for (std::size_t i = 0; i < sizes.size(); ++i)
      EXPECT_EQ(same_bytes(scratch, pieces[i], static_cast<int>(i) + round), sizes[i]);
    for (const auto& piece : pieces) scratch.drop(piece);
  }
  EXPECT_EQ(put(scratch, 0, 5'000'001).tiles.size(), 2u);
}

}  // namespace
}  // namespace zeropage::io
