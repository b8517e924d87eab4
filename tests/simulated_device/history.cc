#include "history.h"

#include <algorithm>
#include <iterator>

namespace simulated_device {

void History::split(std::uintptr_t address) {
  auto next = cells_.upper_bound(address);
  if (next == cells_.begin()) return;
  const auto cell = std::prev(next);
  if (cell->first == address || cell->second.end <= address) return;
  Cell upper = cell->second;
  cell->second.end = address;
  cells_.emplace_hint(next, address, std::move(upper));
}

void History::note(Span bytes, bool writes, const Access& now, const Clock& clock, const Report& conflict) {
  if (bytes.empty()) return;
  split(bytes.begin);
  split(bytes.end);
  const auto first = cells_.lower_bound(bytes.begin);
  const auto last = cells_.lower_bound(bytes.end);
  for (auto cell = first; cell != last; ++cell) {
    const auto check = [&](const Access& before, bool wrote) {
      if (before.actor < 0 || clock.knows(before.actor, before.tick)) return;
      conflict(before, wrote, {cell->first, cell->second.end});
    };
    check(cell->second.write, true);
    if (!writes) continue;
    for (const auto& read : cell->second.reads) check(read, false);
  }
  if (writes) {
    cells_.erase(first, last);
    cells_[bytes.begin] = {bytes.end, now, {}};
    return;
  }
  std::uintptr_t at = bytes.begin;
  for (auto cell = first; cell != last; ++cell) {
    if (cell->first > at) cells_[at] = {cell->first, {}, {now}};
    auto& reads = cell->second.reads;
    std::erase_if(reads, [&](const Access& read) { return read.actor == now.actor; });
    reads.push_back(now);
    at = cell->second.end;
  }
  if (at < bytes.end) cells_[at] = {bytes.end, {}, {now}};
}

void History::forget(Span bytes) {
  if (bytes.empty()) return;
  split(bytes.begin);
  split(bytes.end);
  cells_.erase(cells_.lower_bound(bytes.begin), cells_.lower_bound(bytes.end));
}

}  // namespace simulated_device
