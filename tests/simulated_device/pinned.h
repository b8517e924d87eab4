/// \file
/// Page-locked host memory. What a stream was told to do with it and the host has not waited for is protected: what a
/// stream writes the host can neither read nor write, what a stream reads the host cannot write. An access all the same
/// is a fault of the processor; its handler reports a race and lets the host go on. Protection ends when the host has
/// waited, not when the stream is done, so delays do not matter.
///
/// The allocator does what torch's does: a freed block is handed out again when the streams that were noted for the
/// block are through. Streams are noted by the address or the context of a whole block; a copy that begins in the
/// middle of one is not.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "arena.h"
#include "history.h"
#include "stream.h"

namespace simulated_device {

class Machine;

class PinnedMemory {
 public:
  explicit PinnedMemory(Machine& machine);

  bool contains(const void* address) const { return arena_.contains(address); }
  void* inside(const void* address) const { return arena_.inside(address); }

  /// A block of at least `bytes`; null when there is none.
  void* allocate(std::size_t bytes);

  /// Frees a block. A fault is reported when a stream may still use it and was not noted.
  void free(void* block);

  /// Notes that `stream` uses the block that begins at `block`; false when none does.
  bool note_use(const void* block, Stream& stream);

  // For the machine, under its lock.

  /// A stream will access it; from now on the host may not, until it has waited.
  void expect(Span bytes, bool writes, const Access& access);

  /// What the host knows now is not protected any more.
  void release_known(const Clock& host);

  /// The host touched `address`, which is protected. False: it is nothing of ours.
  bool on_fault(const void* address, bool writes);

 private:
  struct Block {
    std::size_t bytes = 0;
    std::vector<std::shared_ptr<const Point>> uses;
  };
  struct Expected {
    Span bytes;
    bool writes = false;
    Access access;
  };

  /// Sets the protection of all pages that `bytes` touches to what is expected of them.
  void protect(Span bytes);
  void reuse_freed();

  Machine& machine_;
  Arena arena_;
  std::map<std::uintptr_t, Block> blocks_;  // in use, by address
  std::map<std::uintptr_t, Block> freed_;   // waiting for their uses
  std::map<std::size_t, std::vector<std::uintptr_t>> free_;
  std::vector<Expected> expected_;
};

/// Catches faults of the processor: reports accesses of the host to protected page-locked memory, and says where a
/// process dies that touches device memory. Other faults are passed on.
void install_fault_handler();

}  // namespace simulated_device
