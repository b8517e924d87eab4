/// \file
/// The table at the end of a run: what every rank held, counted, beside the formula and beside stage 0.
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

/// Measured bytes of one rank, by MemoryKind: what is held, but of frames the peak.
using RankBytes = std::array<std::int64_t, kMemoryKinds>;

/// The bytes of a ledger as the table shows them.
RankBytes measured_bytes(const Ledger& ledger, Tier tier = Tier::kDevice);

/// "parameters 1.20 GiB, gradients 0 B, optimizer 0 B, frames 0 B, buffers 3.00 MiB, optimizer offloaded 7.00 GiB":
/// what is held now.
std::string format_held_memory(const Ledger& ledger);

struct MemoryTable {
  int stage = 0;
  std::vector<RankBytes> ranks;         ///< index = rank
  std::vector<RankBytes> host;          ///< what is offloaded to the host; empty or nothing but zeros: not shown
  formula::PlacedBytes formula;         ///< for this stage
  formula::StateBytes formula_stage_0;  ///< what the same run would hold at stage 0
};

/// Lines of equal structure, ending in a newline: one row per kind and one for the model state together, then one per
/// kind that is on the host. Up to four
/// ranks have a column each; of more, the smallest and the largest value is shown. The last column is the largest
/// rank's share of stage 0. Errors: UsageError without ranks.
std::string format_memory_table(const MemoryTable& table);

}  // namespace zeropage::report
