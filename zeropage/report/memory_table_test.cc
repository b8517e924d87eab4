#include "zeropage/report/memory_table.h"

#include <gtest/gtest.h>

#include "zeropage/base/error.h"

namespace zeropage::report {
namespace {

constexpr std::int64_t kMiB = 1 << 20;

MemoryTable table_of(int ranks) {
  MemoryTable table{.stage = 2,
                    .ranks = {},
                    .host = {},
                    .formula = {{200 * kMiB, 200 * kMiB, 600 * kMiB}, {}},
                    .formula_stage_0 = {200 * kMiB, 400 * kMiB, 1200 * kMiB}};
  for (int rank = 0; rank < ranks; ++rank) {
    table.ranks.push_back({200 * kMiB, 201 * kMiB + rank * kMiB, 600 * kMiB, 3 * kMiB, 512});
  }
  return table;
}

// The whole table as it must look: alignment, sums, shares.
TEST(MemoryTable, OneColumnPerRank) {
  EXPECT_EQ(format_memory_table(table_of(2)),
            "bytes per rank    rank 0    rank 1  stage 2 formula  stage 0 formula  of stage 0\n"
            "parameters       200 MiB   200 MiB          200 MiB          200 MiB     100.0 %\n"
            "gradients        201 MiB   202 MiB          200 MiB          400 MiB      50.5 %\n"
            "optimizer        600 MiB   600 MiB          600 MiB         1.17 GiB      50.0 %\n"
            "model state     1001 MiB  1002 MiB         1000 MiB         1.76 GiB      55.7 %\n"
            "frames (peak)   3.00 MiB  3.00 MiB                -                -           -\n"
            "buffers            512 B     512 B                -                -           -\n");
}

// Catches offloaded bytes that are shown as the device's, and empty rows.
TEST(MemoryTable, WhatIsOffloadedHasRowsOfItsOwn) {
  MemoryTable table = table_of(2);
  table.host = {{0, 0, 300 * kMiB, 0, 512}, {0, 0, 300 * kMiB, 0, 512}};
  table.formula.offloaded.optimizer = 299 * kMiB;
  const std::string text = format_memory_table(table);
  EXPECT_NE(text.find("host: optimizer   300 MiB   300 MiB          299 MiB"), std::string::npos) << text;
  EXPECT_NE(text.find("host: buffers       512 B     512 B                -"), std::string::npos) << text;
  EXPECT_EQ(text.find("host: gradients"), std::string::npos) << text;
}

TEST(MemoryTable, ManyRanksAreSummedUp) {
  const std::string text = format_memory_table(table_of(64));
  EXPECT_NE(text.find("smallest  largest of 64"), std::string::npos) << text;
  EXPECT_NE(text.find("gradients        201 MiB        264 MiB"), std::string::npos) << text;
}

TEST(MemoryTable, NothingAtStage0IsNoDivisionByZero) {
  MemoryTable table = table_of(1);
  table.formula_stage_0.gradients = 0;
  EXPECT_EQ(format_memory_table(table).find("inf"), std::string::npos);
  table.ranks.clear();
  EXPECT_THROW(format_memory_table(table), UsageError);
}

TEST(MemoryTable, MeasuredBytesAreWhatIsHeldAndThePeakOfFrames) {
  Ledger ledger;
  for (MemoryKind kind : {MemoryKind::kOptimizer, MemoryKind::kFrames}) {
    ledger.add(kind, 100);
    ledger.add(kind, -60);
  }
  ledger.add(MemoryKind::kOptimizer, 7, Tier::kHost);
  EXPECT_EQ(measured_bytes(ledger), (RankBytes{0, 0, 40, 100, 0}));
  EXPECT_EQ(measured_bytes(ledger, Tier::kHost), (RankBytes{0, 0, 7, 0, 0}));
}

TEST(MemoryTable, Bytes) {
  EXPECT_EQ(format_bytes(0), "0 B");
  EXPECT_EQ(format_bytes(1023), "1023 B");
  EXPECT_EQ(format_bytes(1536), "1.50 KiB");
  EXPECT_EQ(format_bytes(kMiB - 1), "1.00 MiB");
  EXPECT_EQ(format_bytes(1000 * kMiB), "1000 MiB");
  EXPECT_EQ(format_bytes(100'000'000), "95.4 MiB");
  EXPECT_EQ(format_bytes(INT64_MAX), "8192 PiB");
}

// Catches a kind that is missing, or that is listed for the wrong memory.
TEST(HeldMemory, IsNamedByKindAndPlace) {
  Ledger ledger;
  ledger.add(MemoryKind::kParameters, 3 * kMiB);
  ledger.add(MemoryKind::kOptimizer, kMiB, Tier::kHost);
  EXPECT_EQ(format_held_memory(ledger),
            "parameters 3.00 MiB, gradients 0 B, optimizer 0 B, frames 0 B, buffers 0 B, optimizer offloaded 1.00 MiB");
}

}  // namespace
}  // namespace zeropage::report
