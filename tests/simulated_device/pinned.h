/// \file
/// Page-locked host memory. Memory of tasks that the host has not waited for is protected: the host can neither read
/// nor write memory that a stream writes, and cannot write memory that a stream reads. Such an access is a fault of the
/// processor; its handler reports a race and lets the host continue. Protection ends when the host has waited, not when
/// the stream is done, so delays do not matter.
///
/// The allocator behaves like torch's: a freed block is reused when the streams that were recorded for it have
/// finished. Streams are recorded by the address or the context of a whole block; a copy that begins in the middle of a
/// block is not recorded.
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

  /// Frees a block. A fault is reported when a stream may still use it and was not recorded.
  void free(void* block);

  /// Records that `stream` uses the block that begins at `block`; false when none does.
  bool note_use(const void* block, Stream& stream);

  // For the machine, under its lock.

  /// A stream will access it; from now on the host may not, until it has waited.
  void expect(Span bytes, bool writes, const Access& access);

  /// Ends the protection of everything that the host has waited for.
  void release_known(const Clock& host);

  /// The host touched `address`, which is protected. False: the address is not in this memory.
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

/// Catches faults of the processor: reports accesses of the host to protected page-locked memory, and prints the
/// address when a process is killed because it touched device memory. Other faults are passed on.
void install_fault_handler();

}  // namespace simulated_device
