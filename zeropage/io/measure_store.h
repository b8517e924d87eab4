/// \file
/// Measures how fast a store moves bytes in the pattern of a training step: extent by extent through a few buffers. One
/// buffer is used while the next is read and the previous one is written.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "zeropage/io/store.h"

namespace zeropage::io {

enum class Traffic { kRead, kWrite, kMixed };

struct Rate {
  std::int64_t bytes = 0;  ///< bytes read and bytes written, together
  double seconds = 0.0;
  double cpu_seconds = 0.0;  ///< of this process, including its time in the kernel

  double gb_per_s() const { return static_cast<double>(bytes) / seconds / 1e9; }
  double cpu_s_per_gb() const { return cpu_seconds / static_cast<double>(bytes) * 1e9; }
};

/// A store with content, for measurements.
class MeasuredStore {
 public:
  static constexpr std::int64_t kExtentBytes = 16 << 20;

  /// Makes a store of `extents` extents of kExtentBytes and writes both slots of each once, because blocks that were
  /// never written are read without using the drive. `options.buffer_count` buffers take turns. Errors: those of Store.
  MeasuredStore(StoreOptions options, int extents);

  /// Moves every extent once (kMixed: once each way). Errors: those of Store.
  Rate run(Traffic traffic);

  Store& store() { return store_; }

 private:
  void pass(Traffic traffic);

  int extents_;
  Store store_;
};

}  // namespace zeropage::io
