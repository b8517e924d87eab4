/// \file
/// Memory for intermediate values of collectives over hosts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace zeropage::comm {

class Bytes {
 public:
  /// Contents undefined. Frees the earlier memory.
  std::byte* allocate(std::int64_t bytes) {
    memory_ = std::make_unique_for_overwrite<std::byte[]>(static_cast<std::size_t>(bytes));
    return memory_.get();
  }
  std::byte* data() const { return memory_.get(); }
  void free() { memory_.reset(); }

 private:
  std::unique_ptr<std::byte[]> memory_;
};

}  // namespace zeropage::comm
