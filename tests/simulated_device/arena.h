/// \file
/// Memory that has two addresses: one memfd, mapped twice. Access by the host, through the public address, can be
/// blocked; the streams use the private address.
#pragma once

#include <cstddef>
#include <cstdint>

#include "history.h"

namespace simulated_device {

inline constexpr std::size_t kPageBytes = 4096;

/// The bytes of freed memory: a NaN in every floating-point type.
inline constexpr int kPoison = 0xff;

class Arena {
 public:
  /// Reserves addresses; memory is allocated when it is written. `hidden`: the public address cannot be touched at all.
  Arena(const char* name, std::size_t bytes, bool hidden);
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  bool contains(const void* address) const { return span().contains(reinterpret_cast<std::uintptr_t>(address)); }
  Span span() const { return {public_, public_ + bytes_}; }

  /// The private address of the same byte.
  void* inside(const void* address) const {
    return reinterpret_cast<void*>(reinterpret_cast<std::uintptr_t>(address) - public_ + private_);
  }

  /// The next unused bytes, page-aligned. Null when there are none.
  void* take(std::size_t bytes);

  /// Returns the memory (not the addresses) to the system.
  void discard(Span bytes);

 private:
  int file_ = -1;
  std::size_t bytes_ = 0;
  std::size_t taken_ = 0;
  std::uintptr_t public_ = 0;
  std::uintptr_t private_ = 0;
};

}  // namespace simulated_device
