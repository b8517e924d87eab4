/// \file
/// Memory that all ranks of a host have mapped, and the table that finds the corresponding address in another rank's
/// part.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string_view>
#include <vector>

#include "zeropage/comm/communicator.h"
#include "zeropage/comm/shm/mapped_region.h"

namespace zeropage::comm {

/// parts[r] is rank r's part, mapped in this process.
using RegionParts = std::vector<std::shared_ptr<MappedRegion>>;

/// The live Memory objects of one communicator. It has a lock, because a Memory may be freed by another thread than the
/// communicating one. Every lookup is one search of an ordered map with one entry per Memory.
class RegionTable {
 public:
  struct Position {
    std::int64_t memory;  ///< number of the Memory, the same on all ranks
    std::int64_t offset;
  };

  void add(std::int64_t memory, int rank, RegionParts parts);
  void remove(std::int64_t memory);

  /// The place of [local, local + bytes), if it is wholly inside this rank's part of one Memory.
  std::optional<Position> find(const void* local, std::int64_t bytes) const;

  /// The address of `place` in `rank`'s part; null when this rank has freed that Memory.
  const std::byte* address(Position place, int rank) const;

 private:
  struct Entry {
    int own_rank;
    RegionParts parts;
  };

  mutable std::mutex mutex_;
  std::map<std::int64_t, Entry> entries_;
  std::map<const std::byte*, std::int64_t> by_address_;  ///< start of this rank's part to number
};

/// This rank's handle on `parts`. Numbers it in `table` until it is destroyed.
std::unique_ptr<Memory> make_region_memory(std::shared_ptr<RegionTable> table, std::int64_t number, int rank,
                                           RegionParts parts);

}  // namespace zeropage::comm
