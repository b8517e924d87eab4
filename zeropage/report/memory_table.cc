#include "zeropage/report/memory_table.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <optional>

#include "zeropage/base/error.h"
#include "zeropage/base/text_table.h"

namespace zeropage::report {
namespace {

constexpr std::size_t kRankColumnsMax = 4;
constexpr MemoryKind kModelState[] = {MemoryKind::kParameters, MemoryKind::kGradients, MemoryKind::kOptimizer};

/// One row before formatting. Frames and buffers have no formula.
struct Row {
  std::string name;
  std::vector<std::int64_t> ranks;
  std::optional<std::int64_t> formula;
  std::int64_t stage_0 = 0;
};

std::vector<std::int64_t> of_kind(const std::vector<RankBytes>& ranks, MemoryKind kind) {
  std::vector<std::int64_t> values;
  for (const RankBytes& rank : ranks) values.push_back(rank[static_cast<int>(kind)]);
  return values;
}

std::vector<Row> rows_of(const MemoryTable& table) {
  const formula::StateBytes& now = table.formula.device;
  const formula::StateBytes& before = table.formula_stage_0;
  Row sum{"model state", std::vector<std::int64_t>(table.ranks.size(), 0), now.total(), before.total()};
  for (MemoryKind kind : kModelState) {
    const std::vector<std::int64_t> values = of_kind(table.ranks, kind);
    for (std::size_t rank = 0; rank < values.size(); ++rank) sum.ranks[rank] += values[rank];
  }
  const std::vector<RankBytes>& ranks = table.ranks;
  return {{"parameters", of_kind(ranks, MemoryKind::kParameters), now.parameters, before.parameters},
          {"gradients", of_kind(ranks, MemoryKind::kGradients), now.gradients, before.gradients},
          {"optimizer", of_kind(ranks, MemoryKind::kOptimizer), now.optimizer, before.optimizer},
          sum,
          {"frames (peak)", of_kind(ranks, MemoryKind::kFrames), {}, 0},
          {"buffers", of_kind(ranks, MemoryKind::kBuffers), {}, 0}};
}

/// The rows of offloaded state, without kinds that are empty. At stage 0 nothing is on the host.
std::vector<Row> host_rows_of(const MemoryTable& table) {
  const formula::StateBytes& formula = table.formula.offloaded;
  std::vector<Row> rows;
  const auto add = [&](MemoryKind kind, std::optional<std::int64_t> expected) {
    Row row{fmt::format("host: {}", memory_kind_name(kind)), of_kind(table.host, kind), expected, 0};
    if (std::any_of(row.ranks.begin(), row.ranks.end(), [](std::int64_t bytes) { return bytes != 0; })) {
      rows.push_back(std::move(row));
    }
  };
  add(MemoryKind::kParameters, formula.parameters);
  add(MemoryKind::kGradients, formula.gradients);
  add(MemoryKind::kOptimizer, formula.optimizer);
  add(MemoryKind::kBuffers, {});
  return rows;
}

Cells heading(const MemoryTable& table) {
  Cells cells{"bytes per rank"};
  if (table.ranks.size() <= kRankColumnsMax) {
    for (std::size_t rank = 0; rank < table.ranks.size(); ++rank) cells.push_back(fmt::format("rank {}", rank));
  } else {
    cells.insert(cells.end(), {"smallest", fmt::format("largest of {}", table.ranks.size())});
  }
  cells.insert(cells.end(), {fmt::format("stage {} formula", table.stage), "stage 0 formula", "of stage 0"});
  return cells;
}

Cells cells_of(const Row& row) {
  Cells cells{row.name};
  const auto [smallest, largest] = std::minmax_element(row.ranks.begin(), row.ranks.end());
  if (row.ranks.size() <= kRankColumnsMax) {
    for (std::int64_t bytes : row.ranks) cells.push_back(format_bytes(bytes));
  } else {
    cells.insert(cells.end(), {format_bytes(*smallest), format_bytes(*largest)});
  }
  if (!row.formula) {
    cells.insert(cells.end(), {"-", "-", "-"});
    return cells;
  }
  const double share = static_cast<double>(*largest) / static_cast<double>(row.stage_0);
  const std::string percent = row.stage_0 > 0 ? fmt::format("{:.1f} %", 100.0 * share) : "-";
  cells.insert(cells.end(), {format_bytes(*row.formula), format_bytes(row.stage_0), percent});
  return cells;
}

}  // namespace

std::string format_bytes(std::int64_t bytes) {
  constexpr std::string_view kUnits[] = {"KiB", "MiB", "GiB", "TiB", "PiB"};
  if (bytes < 1024) return fmt::format("{} B", bytes);
  double value = static_cast<double>(bytes) / 1024.0;
  std::size_t unit = 0;
  // From 1023.5 on the value would be rounded to 1024.
  while (value >= 1023.5 && unit + 1 < std::size(kUnits)) {
    value /= 1024.0;
    ++unit;
  }
  const int decimals = value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2;
  return fmt::format("{:.{}f} {}", value, decimals, kUnits[unit]);
}

RankBytes measured_bytes(const Ledger& ledger, Tier tier) {
  RankBytes bytes{};
  for (int kind = 0; kind < kMemoryKinds; ++kind) {
    bytes[kind] = ledger.current_bytes(static_cast<MemoryKind>(kind), tier);
  }
  bytes[static_cast<int>(MemoryKind::kFrames)] = ledger.peak_bytes(MemoryKind::kFrames, tier);
  return bytes;
}

std::string format_held_memory(const Ledger& ledger) {
  std::vector<std::string> parts;
  for (const Tier tier : {Tier::kDevice, Tier::kHost}) {
    for (int i = 0; i < kMemoryKinds; ++i) {
      const auto kind = static_cast<MemoryKind>(i);
      const std::int64_t bytes = ledger.current_bytes(kind, tier);
      if (tier == Tier::kHost && bytes == 0) continue;
      parts.push_back(
          fmt::format("{}{} {}", memory_kind_name(kind), tier == Tier::kHost ? " offloaded" : "", format_bytes(bytes)));
    }
  }
  return fmt::format("{}", fmt::join(parts, ", "));
}

std::string format_memory_table(const MemoryTable& table) {
  if (table.ranks.empty()) throw UsageError("memory table: expected the bytes of at least one rank, got none");
  std::vector<Cells> lines{heading(table)};
  for (const Row& row : rows_of(table)) lines.push_back(cells_of(row));
  for (const Row& row : host_rows_of(table)) lines.push_back(cells_of(row));
  return text_table(lines, 1);
}

}  // namespace zeropage::report
