#include "zeropage/io/measure_store.h"

#include <gtest/gtest.h>

#include "zeropage/io/test_store.h"

namespace zeropage::io {
namespace {

// Would catch a wrong count: bytes that were never moved, or were moved twice.
TEST(MeasuredStore, MovesWhatItCounts) {
  const TestFolder folder;
  MeasuredStore measured({.folders = {folder.path()}, .buffer_count = 3}, 4);
  const std::int64_t once = 4 * MeasuredStore::kExtentBytes;
  for (const auto& [traffic, reads, writes] :
       {std::tuple{Traffic::kRead, 1, 0}, {Traffic::kWrite, 0, 1}, {Traffic::kMixed, 1, 1}}) {
    const MoverStats before = measured.store().stats();
    const Rate rate = measured.run(traffic);
    const MoverStats after = measured.store().stats();
    EXPECT_EQ(after.read_bytes - before.read_bytes, reads * once);
    EXPECT_EQ(after.written_bytes - before.written_bytes, writes * once);
    EXPECT_EQ(rate.bytes, (reads + writes) * once);
    EXPECT_GT(rate.gb_per_s(), 0);
  }
}

}  // namespace
}  // namespace zeropage::io
