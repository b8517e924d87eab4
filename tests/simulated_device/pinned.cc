#include "pinned.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "machine.h"

namespace simulated_device {
namespace {

constexpr std::size_t kPinnedBytes = std::size_t{16} << 30;

}  // namespace

PinnedMemory::PinnedMemory(Machine& machine) : machine_(machine), arena_("page-locked memory", kPinnedBytes, false) {}

void* PinnedMemory::allocate(std::size_t bytes) {
  const std::lock_guard lock(machine_.mutex_);
  reuse_freed();
  bytes = std::max<std::size_t>(std::bit_ceil(bytes), kPageBytes);
  void* block = nullptr;
  if (auto& known = free_[bytes]; !known.empty()) {
    block = reinterpret_cast<void*>(known.back());
    known.pop_back();
  } else {
    block = arena_.take(bytes);
    if (block == nullptr) return nullptr;
  }
  blocks_[reinterpret_cast<std::uintptr_t>(block)] = {bytes, {}};
  return block;
}

void PinnedMemory::free(void* address) {
  const std::lock_guard lock(machine_.mutex_);
  const auto found = blocks_.find(reinterpret_cast<std::uintptr_t>(address));
  if (found == blocks_.end()) return;
  const Span bytes{found->first, found->first + found->second.bytes};
  std::erase_if(expected_, [&](const Expected& expected) {
    if (!bytes.overlaps(expected.bytes)) return false;
    const auto& uses = found->second.uses;
    const bool noted = std::any_of(uses.begin(), uses.end(), [&](const auto& point) {
      return point->clock.knows(expected.access.actor, expected.access.tick);
    });
    if (!noted) {
      machine_.report("page-locked memory is freed while " + *expected.access.what +
                      (expected.writes ? " writes" : " reads") +
                      " it: the host has not waited, and the stream was not recorded for the block");
    }
    return true;
  });
  protect(bytes);
  freed_.insert(*found);
  blocks_.erase(found);
  reuse_freed();
}

void PinnedMemory::reuse_freed() {
  std::erase_if(freed_, [&](const auto& entry) {
    const auto& [address, block] = entry;
    for (const auto& point : block.uses) {
      if (!point->reached()) return false;
    }
    machine_.history_.forget({address, address + block.bytes});
    std::memset(arena_.inside(reinterpret_cast<void*>(address)), kPoison, block.bytes);
    free_[block.bytes].push_back(address);
    return true;
  });
}

bool PinnedMemory::note_use(const void* block, Stream& stream) {
  const std::lock_guard lock(machine_.mutex_);
  const auto found = blocks_.find(reinterpret_cast<std::uintptr_t>(block));
  if (found == blocks_.end()) return false;
  found->second.uses.push_back(machine_.record_locked(stream));
  return true;
}

void PinnedMemory::expect(Span bytes, bool writes, const Access& access) {
  expected_.push_back({bytes, writes, access});
  protect(bytes);
}

void PinnedMemory::release_known(const Clock& host) {
  std::vector<Span> known;
  std::erase_if(expected_, [&](const Expected& expected) {
    if (!host.knows(expected.access.actor, expected.access.tick)) return false;
    known.push_back(expected.bytes);
    return true;
  });
  for (const auto& bytes : known) protect(bytes);
}

void PinnedMemory::protect(Span bytes) {
  const std::uintptr_t end = (bytes.end + kPageBytes - 1) / kPageBytes * kPageBytes;
  std::uintptr_t run = bytes.begin / kPageBytes * kPageBytes;
  int protection_of_run = -1;
  for (std::uintptr_t page = run; page <= end; page += kPageBytes) {
    int protection = page == end ? -1 : PROT_READ | PROT_WRITE;
    for (const auto& expected : expected_) {
      if (page == end || !expected.bytes.overlaps({page, page + kPageBytes})) continue;
      protection = expected.writes ? PROT_NONE : std::min(protection, PROT_READ);
    }
    if (protection == protection_of_run) continue;
    if (page > run) mprotect(reinterpret_cast<void*>(run), page - run, protection_of_run);
    run = page;
    protection_of_run = protection;
  }
}

bool PinnedMemory::on_fault(const void* data, bool writes) {
  const std::lock_guard lock(machine_.mutex_);
  if (!contains(data)) return false;
  const auto address = reinterpret_cast<std::uintptr_t>(data);
  const auto is_race = [&](const Expected& expected) {
    return expected.bytes.contains(address) && (writes || expected.writes);
  };
  for (const auto& expected : expected_) {
    if (!is_race(expected)) continue;
    machine_.report(std::string("race: the host ") + (writes ? "writes" : "reads") + " page-locked memory that " +
                    *expected.access.what + (expected.writes ? " writes" : " reads") + ", and it has not waited");
  }
  std::erase_if(expected_, is_race);
  // The page may have other bytes that the host may access: from now on nothing in it is protected.
  const std::uintptr_t page = address / kPageBytes * kPageBytes;
  mprotect(reinterpret_cast<void*>(page), kPageBytes, PROT_READ | PROT_WRITE);
  return true;
}

}  // namespace simulated_device
