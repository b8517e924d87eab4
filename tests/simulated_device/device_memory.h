/// \file
/// The allocator of device memory, which behaves like torch's on a GPU. A block belongs to the stream that was current
/// when it was made. Freed, it is poisoned on that stream and available to it again immediately, last in, first out; it
/// first waits for the streams that were recorded for it. Poisoning counts as a write, so freeing what another stream
/// uses is a race.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "machine.h"

namespace simulated_device {

struct DeviceBytes {
  std::int64_t used = 0;
  std::int64_t most_used = 0;
  std::int64_t reserved = 0;
  std::int64_t most_reserved = 0;
};

class DeviceMemory {
 public:
  static DeviceMemory& get();

  /// Null when there is none. `what`: the user, for messages.
  void* allocate(Stream& stream, std::size_t bytes);
  void free(void* data);
  void note_use(const void* data, Stream& stream);

  /// The device of the block that contains `data`, if there is one.
  std::optional<int> device_of(const void* data);

  /// Returns free blocks to the system.
  void empty_cache();
  DeviceBytes bytes(int device);
  void reset_peak(int device);

 private:
  struct Block {
    std::size_t bytes = 0;
    Stream* home = nullptr;
    std::vector<Stream*> others;
    std::vector<PointPtr> uses;  // by other streams, once it is freed
  };

  void poison(std::uintptr_t address, const Block& block, const char* why);
  void reuse_freed();

  std::mutex mutex_;
  std::map<std::uintptr_t, Block> blocks_;  // in use
  std::map<std::uintptr_t, Block> freed_;   // waiting for their uses
  std::map<std::pair<Stream*, std::size_t>, std::vector<std::uintptr_t>> free_;
  std::map<std::pair<int, std::size_t>, std::vector<std::uintptr_t>> given_back_;
  DeviceBytes bytes_[kDevices];
};

}  // namespace simulated_device
