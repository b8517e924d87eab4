#include "zeropage/comm/shm/region_memory.h"

#include <utility>

namespace zeropage::comm {
namespace {

class RegionMemory final : public Memory {
 public:
  RegionMemory(std::shared_ptr<RegionTable> table, std::int64_t number, std::shared_ptr<MappedRegion> own)
      : table_(std::move(table)), number_(number), own_(std::move(own)) {}
  ~RegionMemory() override { table_->remove(number_); }

  std::byte* data() const override { return own_->data(); }
  std::int64_t bytes() const override { return own_->bytes(); }
  void discard(std::int64_t offset, std::int64_t length) override { own_->discard(offset, length); }

 private:
  std::shared_ptr<RegionTable> table_;
  std::int64_t number_;
  std::shared_ptr<MappedRegion> own_;
};

}  // namespace

void RegionTable::add(std::int64_t memory, int rank, RegionParts parts) {
  const std::scoped_lock lock(mutex_);
  by_address_.emplace(parts[static_cast<std::size_t>(rank)]->data(), memory);
  entries_.emplace(memory, Entry{rank, std::move(parts)});
}

void RegionTable::remove(std::int64_t memory) {
  Entry released;  // unmapped after the lock is released
  const std::scoped_lock lock(mutex_);
  const auto found = entries_.find(memory);
  if (found == entries_.end()) return;
  released = std::move(found->second);
  by_address_.erase(released.parts[static_cast<std::size_t>(released.own_rank)]->data());
  entries_.erase(found);
}

std::optional<RegionTable::Position> RegionTable::find(const void* local, std::int64_t bytes) const {
  const auto* address = static_cast<const std::byte*>(local);
  const std::scoped_lock lock(mutex_);
  auto after = by_address_.upper_bound(address);
  if (after == by_address_.begin()) return std::nullopt;
  const auto& [start, memory] = *std::prev(after);
  const Entry& entry = entries_.at(memory);
  const std::int64_t offset = address - start;
  if (offset + bytes > entry.parts[static_cast<std::size_t>(entry.own_rank)]->bytes()) return std::nullopt;
  return Position{memory, offset};
}

const std::byte* RegionTable::address(Position place, int rank) const {
  const std::scoped_lock lock(mutex_);
  const auto found = entries_.find(place.memory);
  return found == entries_.end() ? nullptr : found->second.parts[static_cast<std::size_t>(rank)]->data() + place.offset;
}

std::unique_ptr<Memory> make_region_memory(std::shared_ptr<RegionTable> table, std::int64_t number, int rank,
                                           RegionParts parts) {
  auto own = parts[static_cast<std::size_t>(rank)];
  table->add(number, rank, std::move(parts));
  return std::make_unique<RegionMemory>(std::move(table), number, std::move(own));
}

}  // namespace zeropage::comm
