/// \file
/// A memory mapping that is released with its object.
#pragma once

#include <cstddef>
#include <cstdint>

namespace zeropage::comm {

class MappedRegion {
 public:
  /// Maps `bytes` of the file `fd` (at least one page), shared and writable; anonymous zeros when `fd` is -1. Needs
  /// only address space until touched. `label` is used in messages. Errors: IoError.
  MappedRegion(int fd, std::int64_t bytes, const char* label);
  ~MappedRegion();
  MappedRegion(const MappedRegion&) = delete;
  MappedRegion& operator=(const MappedRegion&) = delete;

  std::byte* data() const { return data_; }
  std::int64_t bytes() const { return bytes_; }

  /// Frees the whole pages inside [offset, offset + length) in all mappings; they read as zeros afterwards.
  void discard(std::int64_t offset, std::int64_t length);

 private:
  std::byte* data_ = nullptr;
  std::int64_t bytes_ = 0;
  std::int64_t mapped_bytes_ = 0;
};

}  // namespace zeropage::comm
