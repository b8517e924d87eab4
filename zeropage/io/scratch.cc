#include "zeropage/io/scratch.h"

#include <algorithm>
#include <utility>

namespace zeropage::io {
namespace {

StoreOptions with_tiles(StoreOptions options, std::int64_t tile_bytes) {
  options.buffer_count = 4;
  options.buffer_bytes = tile_bytes;
  return options;
}

}  // namespace

Scratch::Scratch(StoreOptions options) : store_(with_tiles(std::move(options), kTileBytes), {}) {}

int Scratch::take_tile(const std::string& name, std::int64_t bytes) {
  {
    const std::lock_guard lock(mutex_);
    if (const auto found = free_.find(bytes); found != free_.end()) return free_.extract(found).mapped();
  }
  const int tile = store_.add({name, bytes, /*two_slots=*/false});
  tile_bytes_.push_back(bytes);
  return tile;
}

Scratch::Piece Scratch::put(const std::string& name, std::int64_t bytes,
                            const std::function<void(std::span<std::byte> to, std::int64_t offset)>& copy) {
  Piece piece{.bytes = bytes};
  std::vector<Store::Ticket> under_way(static_cast<std::size_t>(store_.buffer_count()));
  for (std::int64_t offset = 0; offset < bytes; offset += kTileBytes) {
    const std::int64_t length = std::min(kTileBytes, bytes - offset);
    const auto buffer = piece.tiles.size() % under_way.size();
    if (under_way[buffer]) store_.wait(under_way[buffer]);
    piece.tiles.push_back(take_tile(name, aligned(length)));
    const auto tile = store_.buffer(static_cast<int>(buffer));
    copy(tile.first(static_cast<std::size_t>(length)), offset);
    std::ranges::fill(tile.subspan(static_cast<std::size_t>(length)), std::byte{0});
    under_way[buffer] = store_.write(piece.tiles.back(), static_cast<int>(buffer));
  }
  for (const auto& ticket : under_way) {
    if (ticket) store_.wait(ticket);
  }
  store_.commit();
  return piece;
}

void Scratch::get(const Piece& piece, const std::function<void(std::span<std::byte> from, std::int64_t offset)>& copy) {
  std::vector<Store::Ticket> under_way(static_cast<std::size_t>(store_.buffer_count()));
  std::size_t next = 0;
  for (std::size_t i = 0; i < piece.tiles.size(); ++i) {
    for (; next < std::min(piece.tiles.size(), i + under_way.size()); ++next) {
      const auto buffer = next % under_way.size();
      under_way[buffer] = store_.read(piece.tiles[next], static_cast<int>(buffer));
    }
    const auto buffer = i % under_way.size();
    store_.wait(under_way[buffer]);
    const std::int64_t offset = static_cast<std::int64_t>(i) * kTileBytes;
    const std::int64_t length = std::min(kTileBytes, piece.bytes - offset);
    copy(store_.buffer(static_cast<int>(buffer)).first(static_cast<std::size_t>(length)), offset);
  }
}

void Scratch::drop(const Piece& piece) {
  const std::lock_guard lock(mutex_);
  for (const int tile : piece.tiles) free_.emplace(tile_bytes_[static_cast<std::size_t>(tile)], tile);
}

}  // namespace zeropage::io
