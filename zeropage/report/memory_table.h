/// \file
/// The table at the end of a run: the counted bytes of every rank, with the bytes of the formula and of stage 0.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "zeropage/base/ledger.h"
#include "zeropage/formula/model_state.h"

namespace zeropage::report {

/// "0 B", "512 B", "1.50 KiB", "95.4 MiB", "1.20 GiB": three digits, or four below the next unit.
std::string format_bytes(std::int64_t bytes);

/// Measured bytes of one rank, by MemoryKind: the current bytes, and for frames the peak.
using RankBytes = std::array<std::int64_t, kMemoryKinds>;

/// The bytes of a ledger as the table shows them.
RankBytes measured_bytes(const Ledger& ledger, Tier tier = Tier::kDevice);

/// "parameters 1.20 GiB, gradients 0 B, optimizer 0 B, frames 0 B, buffers 3.00 MiB, optimizer offloaded 7.00 GiB":
/// the current bytes.
std::string format_held_memory(const Ledger& ledger);

struct MemoryTable {
  int stage = 0;
  std::vector<RankBytes> ranks;         ///< index = rank
  std::vector<RankBytes> host;          ///< the bytes that are offloaded to the host; empty or all zeros: not shown
  formula::PlacedBytes formula;         ///< for this stage
  formula::StateBytes formula_stage_0;  ///< the bytes of the same run at stage 0
};

/// The lines of the table, each with a newline at its end: one row per kind and one for the model state together, then
/// one per kind that is on the host. Up to four ranks have a column each; with more ranks only the smallest and the
/// largest value are shown. The last column is the largest rank's share of stage 0. Errors: UsageError without ranks.
std::string format_memory_table(const MemoryTable& table);

}  // namespace zeropage::report
