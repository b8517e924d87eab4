/// \file
/// The last reads and writes of all bytes, and whether one access happened after another.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "clock.h"

namespace simulated_device {

/// One access of a stream to memory. `what` exists as long as the process.
struct Access {
  int actor = -1;  ///< -1: none
  std::uint64_t tick = 0;
  const std::string* what = nullptr;
};

/// Half-open range of addresses.
struct Span {
  std::uintptr_t begin = 0;
  std::uintptr_t end = 0;

  bool empty() const { return begin >= end; }
  bool overlaps(const Span& other) const { return begin < other.end && other.begin < end; }
  bool contains(std::uintptr_t address) const { return begin <= address && address < end; }
};

class History {
 public:
  /// Called for a conflict: the earlier access, whether it wrote, and the bytes that both touch.
  using Report = std::function<void(const Access& before, bool wrote, Span bytes)>;

  /// Records an access that happens after everything in `clock`. A conflict is an access to the same bytes that is not
  /// in `clock`, if one of the two is a write.
  void note(Span bytes, bool writes, const Access& now, const Clock& clock, const Report& conflict);

  /// Forgets all accesses to these bytes.
  void forget(Span bytes);

 private:
  struct Cell {
    std::uintptr_t end = 0;
    Access write;
    std::vector<Access> reads;  // since the write; one per actor
  };

  /// Makes a cell begin at `address` if one spans it.
  void split(std::uintptr_t address);

  std::map<std::uintptr_t, Cell> cells_;  // by first byte; they do not overlap
};

}  // namespace simulated_device
