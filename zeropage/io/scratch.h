/// \file
/// Temporary storage on a drive for pieces of any size. Pieces are cut into tiles, which pass through a few small
/// buffers. This is for data without a fixed place; the training state is in pages (page_cache.h). Space is reserved
/// when a piece is put, and reused for later pieces.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "zeropage/io/store.h"

namespace zeropage::io {

class Scratch {
 public:
  /// A stored piece. The caller passes it to `drop` once.
  struct Piece {
    std::vector<int> tiles = {};
    std::int64_t bytes = 0;
  };

  static constexpr std::int64_t kMemoryBytes = 16 << 20;  ///< of its four buffers

  /// Memory: kMemoryBytes. Errors: as Store.
  explicit Scratch(StoreOptions options);

  /// `copy(to, offset)` must fill `to` with the bytes from `offset` on. Errors: IoError (a full disk, EIO),
  /// TimeoutError.
  Piece put(const std::string& name, std::int64_t bytes,
            const std::function<void(std::span<std::byte> to, std::int64_t offset)>& copy);

  /// `copy(from, offset)` gets the bytes from `offset` on. Errors: IoError, also for bytes that changed; TimeoutError.
  void get(const Piece& piece, const std::function<void(std::span<std::byte> from, std::int64_t offset)>& copy);

  /// Frees the space of a piece. Any thread may call this.
  void drop(const Piece& piece);

 private:
  static constexpr std::int64_t kTileBytes = kMemoryBytes / 4;

  int take_tile(const std::string& name, std::int64_t bytes);

  Store store_;
  std::mutex mutex_;
  std::multimap<std::int64_t, int> free_;  // extents by their size
  std::vector<std::int64_t> tile_bytes_;   // per extent
};

}  // namespace zeropage::io
