/// \file
/// Counts the engine's bytes by kind: every buffer is added here when it is made and subtracted when it is freed. So
/// the memory table shows counted bytes, not estimates.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string_view>

namespace zeropage {

enum class MemoryKind : std::uint8_t { kParameters, kGradients, kOptimizer, kFrames, kBuffers };
inline constexpr int kMemoryKinds = 5;

/// The memory in which a buffer is: the device's, or the host's for offloaded state. Where the device is the CPU, both
/// are RAM, and are still counted separately.
enum class Tier : std::uint8_t { kDevice, kHost };
inline constexpr int kTiers = 2;

/// "parameters", "gradients", "optimizer", "frames", "buffers".
constexpr std::string_view memory_kind_name(MemoryKind kind) {
  constexpr std::array<std::string_view, kMemoryKinds> names{"parameters", "gradients", "optimizer", "frames",
                                                             "buffers"};
  return names[static_cast<int>(kind)];
}

/// Counters of one engine; safe to use from several threads.
class Ledger {
 public:
  void add(MemoryKind kind, std::int64_t bytes, Tier tier = Tier::kDevice) {
    auto& cell = cells_[index(kind, tier)];
    const std::int64_t now = cell.current.fetch_add(bytes) + bytes;
    std::int64_t seen = cell.peak.load();
    while (now > seen && !cell.peak.compare_exchange_weak(seen, now)) {
    }
  }
  std::int64_t current_bytes(MemoryKind kind, Tier tier = Tier::kDevice) const {
    return cells_[index(kind, tier)].current.load();
  }
  std::int64_t peak_bytes(MemoryKind kind, Tier tier = Tier::kDevice) const {
    return cells_[index(kind, tier)].peak.load();
  }

 private:
  struct Cell {
    std::atomic<std::int64_t> current{0};
    std::atomic<std::int64_t> peak{0};
  };
  static constexpr int index(MemoryKind kind, Tier tier) {
    return static_cast<int>(tier) * kMemoryKinds + static_cast<int>(kind);
  }
  std::array<Cell, kMemoryKinds * kTiers> cells_;
};

/// An entry whose destructor removes it from the ledger.
class LedgerEntry {
 public:
  LedgerEntry() = default;
  LedgerEntry(std::shared_ptr<Ledger> ledger, MemoryKind kind, std::int64_t bytes, Tier tier = Tier::kDevice)
      : ledger_(std::move(ledger)), kind_(kind), tier_(tier), bytes_(bytes) {
    if (ledger_) ledger_->add(kind_, bytes_, tier_);
  }
  LedgerEntry(LedgerEntry&& other) noexcept { swap(other); }
  LedgerEntry& operator=(LedgerEntry&& other) noexcept {
    swap(other);
    return *this;
  }
  ~LedgerEntry() {
    if (ledger_) ledger_->add(kind_, -bytes_, tier_);
  }

 private:
  void swap(LedgerEntry& other) noexcept {
    std::swap(ledger_, other.ledger_);
    std::swap(kind_, other.kind_);
    std::swap(tier_, other.tier_);
    std::swap(bytes_, other.bytes_);
  }
  std::shared_ptr<Ledger> ledger_;
  MemoryKind kind_ = MemoryKind::kBuffers;
  Tier tier_ = Tier::kDevice;
  std::int64_t bytes_ = 0;
};

}  // namespace zeropage
