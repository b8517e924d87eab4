/// \file
/// Bytes of any number that are put aside on a drive and fetched again: cut into tiles, which pass through a few small
/// buffers. For what has no fixed place yet; the state of training lives in pages (page_cache.h). Space is reserved
/// when something is put there, and used again for what comes after.
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
  /// What was put aside. To be given to `drop` once.
  struct Piece {
    std::vector<int> tiles = {};
    std::int64_t bytes = 0;
  };

  /// Memory: four buffers of 4 MiB. Errors: those of Store.
  explicit Scratch(StoreOptions options);

  /// `copy(to, offset)` writes the bytes from `offset` on to `to`. Errors: IoError (a full disk, EIO), TimeoutError.
  Piece put(const std::string& name, std::int64_t bytes,
            const std::function<void(std::span<std::byte> to, std::int64_t offset)>& copy);

  /// `copy(from, offset)` takes the bytes from `offset` on. Errors: IoError, also for bytes that changed; TimeoutError.
  void get(const Piece& piece, const std::function<void(std::span<std::byte> from, std::int64_t offset)>& copy);

  /// Its space is free again. From any thread.
  void drop(const Piece& piece);

 private:
  static constexpr std::int64_t kTileBytes = 4 << 20;

  int take_tile(const std::string& name, std::int64_t bytes);

  Store store_;
  std::mutex mutex_;
  std::multimap<std::int64_t, int> free_;  // extents by their size
  std::vector<std::int64_t> tile_bytes_;   // per extent
};

}  // namespace zeropage::io
