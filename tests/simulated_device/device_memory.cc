#include "device_memory.h"

#include <algorithm>
#include <cstring>

namespace simulated_device {
DeviceMemory& DeviceMemory::get() {
  static auto* memory = new DeviceMemory();
  return *memory;
}

void DeviceMemory::poison(std::uintptr_t address, const Block& block, const char* why) {
  void* data = reinterpret_cast<void*>(address);
  void* inside = Machine::get().memory(block.home->device).inside(data);
  const std::vector<Use> uses = {{data, block.bytes, 0, true}};
  Machine::get().launch(*block.home, why, uses, [inside, bytes = block.bytes] { std::memset(inside, kPoison, bytes); });
}

void* DeviceMemory::allocate(Stream& stream, std::size_t bytes) {
  if (bytes == 0) return nullptr;
  const std::lock_guard lock(mutex_);
  reuse_freed();
  bytes = (bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
  auto& count = bytes_[stream.device];
  const auto take = [](std::vector<std::uintptr_t>& known) {
    const auto address = known.back();
    known.pop_back();
    return address;
  };
  std::uintptr_t address = 0;
  const Block block{bytes, &stream, {}, {}};
  if (auto& known = free_[{&stream, bytes}]; !known.empty()) {
    address = take(known);
  } else {
    if (auto& old = given_back_[{stream.device, bytes}]; !old.empty()) {
      address = take(old);
    } else {
      address = reinterpret_cast<std::uintptr_t>(Machine::get().memory(stream.device).take(bytes));
    }
    if (address == 0) return nullptr;
    count.reserved += static_cast<std::int64_t>(bytes);
    count.most_reserved = std::max(count.most_reserved, count.reserved);
    poison(address, block, "new memory");
  }
  blocks_[address] = block;
  count.used += static_cast<std::int64_t>(bytes);
  count.most_used = std::max(count.most_used, count.used);
  return reinterpret_cast<void*>(address);
}

void DeviceMemory::free(void* data) {
  const std::lock_guard lock(mutex_);
  const auto found = blocks_.find(reinterpret_cast<std::uintptr_t>(data));
  if (found == blocks_.end()) return;
  auto block = found->second;
  for (Stream* other : block.others) block.uses.push_back(Machine::get().record(*other));
  bytes_[block.home->device].used -= static_cast<std::int64_t>(block.bytes);
  freed_[found->first] = std::move(block);
  blocks_.erase(found);
  reuse_freed();
}

void DeviceMemory::reuse_freed() {
  std::erase_if(freed_, [&](const auto& entry) {
    const auto& [address, block] = entry;
    for (const auto& point : block.uses) {
      if (!point->reached()) return false;
    }
    for (const auto& point : block.uses) Machine::get().block(*block.home, point);
    poison(address, block, "reuse of freed memory");
    free_[{block.home, block.bytes}].push_back(address);
    return true;
  });
}

void DeviceMemory::note_use(const void* data, Stream& stream) {
  const std::lock_guard lock(mutex_);
  const auto found = blocks_.find(reinterpret_cast<std::uintptr_t>(data));
  if (found == blocks_.end() || found->second.home == &stream) return;
  auto& others = found->second.others;
  if (std::find(others.begin(), others.end(), &stream) == others.end()) others.push_back(&stream);
}

std::optional<int> DeviceMemory::device_of(const void* data) {
  const std::lock_guard lock(mutex_);
  const auto address = reinterpret_cast<std::uintptr_t>(data);
  const auto next = blocks_.upper_bound(address);
  if (next == blocks_.begin()) return std::nullopt;
  const auto& [begin, block] = *std::prev(next);
  if (address >= begin + block.bytes) return std::nullopt;
  return block.home->device;
}

void DeviceMemory::empty_cache() {
  for (int device = 0; device < kDevices; ++device) Machine::get().synchronize(device);
  const std::lock_guard lock(mutex_);
  for (auto& [key, known] : free_) {
    const auto [stream, bytes] = key;
    for (const auto address : known) {
      Machine::get().forget({address, address + bytes});
      Machine::get().memory(stream->device).discard({address, address + bytes});
      given_back_[{stream->device, bytes}].push_back(address);
      bytes_[stream->device].reserved -= static_cast<std::int64_t>(bytes);
    }
    known.clear();
  }
}

DeviceBytes DeviceMemory::bytes(int device) {
  const std::lock_guard lock(mutex_);
  return bytes_[device];
}

void DeviceMemory::reset_peak(int device) {
  const std::lock_guard lock(mutex_);
  bytes_[device].most_used = bytes_[device].used;
  bytes_[device].most_reserved = bytes_[device].reserved;
}

}  // namespace simulated_device
