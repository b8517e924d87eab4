#include "zeropage/io/store.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "zeropage/base/checked.h"
#include "zeropage/base/error.h"
#include "zeropage/io/job_files.h"

namespace zeropage::io {

/// `active`: the committed slot; -1: none yet. `writing`: the last write since the commit; null: none.
struct Store::Extent {
  std::string name;
  std::int64_t bytes = 0;
  std::vector<std::vector<Block>> slots = {};
  int active = -1;
  Ticket writing = nullptr;

  int other_slot() const { return active == 0 ? static_cast<int>(slots.size()) - 1 : 0; }
  int newest() const { return writing ? other_slot() : active; }
};

struct Store::Files {
  Files(int buffer_count, std::int64_t buffer_bytes) : arena(buffer_count, buffer_bytes) {}
  Arena arena;
  std::vector<JobFile> files;
};

namespace {

void check(const StoreOptions& options) {
  if (options.folders.empty()) throw UsageError("a store needs a folder (nvme_path)");
  if (options.block_bytes < 1 || options.queue_depth < 1) {
    throw UsageError(fmt::format("a store with blocks of {} bytes, {} at a time: both must be at least 1",
                                 options.block_bytes, options.queue_depth));
  }
}

}  // namespace

Store::Store(StoreOptions options, std::vector<ExtentSpec> extents)
    : options_(std::move(options)), ends_(options_.folders.size(), 0) {
  check(options_);
  std::int64_t largest = kAlignment;
  for (const ExtentSpec& spec : extents) largest = std::max(largest, spec.bytes);
  if (options_.buffer_bytes == 0) options_.buffer_bytes = largest;
  for (ExtentSpec& spec : extents) place(std::move(spec));
  files_ = std::make_shared<Files>(options_.buffer_count, options_.buffer_bytes);
  MoverOptions moving;
  moving.queue.kind = options_.queue;
  moving.queue.depth = options_.queue_depth * static_cast<int>(options_.folders.size());
  moving.queue.arena = &files_->arena;
  moving.wrap_queue = options_.wrap_queue;
  moving.timeout_ms = options_.timeout_ms;
  moving.keep = files_;
  for (std::size_t i = 0; i < options_.folders.size(); ++i) {
    const JobFile& file = files_->files.emplace_back(options_.folders[i], options_.owner, ends_[i]);
    moving.queue.files.push_back(file.descriptor());
    moving.paths.push_back(file.path());
  }
  mover_ = std::make_unique<Mover>(std::move(moving));
}

/// Distributes the blocks of an extent over the folders in turn. Each block directly follows the last block of its
/// folder.
int Store::place(ExtentSpec spec) {
  if (spec.bytes > aligned(options_.buffer_bytes)) {
    throw UsageError(
        fmt::format("an extent of {} bytes does not fit a buffer of {}", spec.bytes, options_.buffer_bytes));
  }
  Extent& extent = extents_.emplace_back(Extent{.name = std::move(spec.name), .bytes = spec.bytes});
  extent.slots.resize(spec.two_slots ? 2 : 1);
  const std::int64_t block_bytes = aligned(options_.block_bytes);
  for (std::vector<Block>& slot : extent.slots) {
    for (std::int64_t rest = aligned(spec.bytes); rest > 0; rest -= block_bytes) {
      const std::int64_t size = std::min(rest, block_bytes);
      std::int64_t& end = ends_[next_folder_];
      slot.push_back({static_cast<int>(next_folder_), end, size, 0});
      end = checked_add(end, size, "bytes of the store");
      next_folder_ = (next_folder_ + 1) % ends_.size();
    }
  }
  return static_cast<int>(extents_.size()) - 1;
}

int Store::add(ExtentSpec extent) {
  const int index = place(std::move(extent));
  for (std::size_t i = 0; i < ends_.size(); ++i) files_->files[i].grow(ends_[i]);
  return index;
}

Store::~Store() = default;

int Store::buffer_count() const { return files_->arena.count(); }

std::span<std::byte> Store::buffer(int index) const { return files_->arena.buffer(index); }

void Store::check_arguments(int extent, int buffer) const {
  if (extent < 0 || extent >= static_cast<int>(extents_.size()) || buffer < 0 || buffer >= buffer_count()) {
    throw UsageError(fmt::format("extent {} of {} and buffer {} of {}: no such extent or buffer", extent,
                                 extents_.size(), buffer, buffer_count()));
  }
}

Store::Ticket Store::move(bool write, std::vector<Block>& blocks, const std::string& name, int buffer) {
  auto transfer = std::make_shared<BufferTransfer>();
  transfer->write = write;
  transfer->buffer = buffer;
  transfer->name = name;
  transfer->blocks = &blocks;
  mover_->start(transfer);
  return transfer;
}

bool Store::readable(int extent) const { return extents_[static_cast<std::size_t>(extent)].newest() >= 0; }

void Store::require_idle(const Extent& extent, const char* what) const {
  if (!extent.writing || mover_->finished(extent.writing)) return;
  throw UsageError(fmt::format("{} of {}: it is still being written; wait for that first", what, extent.name));
}

Store::Ticket Store::read(int extent, int buffer) {
  check_arguments(extent, buffer);
  Extent& from = extents_[static_cast<std::size_t>(extent)];
  if (from.newest() < 0) throw UsageError(fmt::format("read of {}: nothing was written to it yet", from.name));
  require_idle(from, "read");
  return move(false, from.slots[static_cast<std::size_t>(from.newest())], from.name, buffer);
}

Store::Ticket Store::write(int extent, int buffer) {
  check_arguments(extent, buffer);
  Extent& to = extents_[static_cast<std::size_t>(extent)];
  require_idle(to, "write");
  to.writing = move(true, to.slots[static_cast<std::size_t>(to.other_slot())], to.name, buffer);
  return to.writing;
}

void Store::wait(const Ticket& ticket) { mover_->wait(ticket); }

bool Store::finished(const Ticket& ticket) const { return mover_->finished(ticket); }

void Store::commit() {
  for (const Extent& extent : extents_) {
    if (!extent.writing) continue;
    require_idle(extent, "commit");
    if (!extent.writing->error.empty())
      throw UsageError(fmt::format("commit: {} could not be written; abandon() instead", extent.name));
  }
  for (Extent& extent : extents_) {
    extent.active = extent.newest();
    extent.writing = nullptr;
  }
}

void Store::abandon() {
  for (const Extent& extent : extents_) {
    if (!extent.writing) continue;
    try {
      mover_->wait(extent.writing);
    } catch (const IoError&) {
      // Its slot was not active and will not become active.
    }
  }
  for (Extent& extent : extents_) {
    if (extent.writing && extent.slots.size() == 1) extent.active = -1;
    extent.writing = nullptr;
  }
}

void Store::abort(const std::string& reason) { mover_->abort(reason); }

MoverStats Store::stats() const { return mover_->stats(); }

std::int64_t Store::reserved_bytes() const {
  std::int64_t sum = 0;
  for (const JobFile& file : files_->files) sum += file.bytes();
  return sum;
}

std::string Store::how() const { return mover_->describe(); }

std::vector<std::string> Store::notes() const {
  std::vector<std::string> notes;
  for (const JobFile& file : files_->files) {
    if (!file.note().empty()) notes.push_back(fmt::format("{}: {}", file.path(), file.note()));
  }
  return notes;
}

int Store::descriptor(int folder) const { return files_->files[static_cast<std::size_t>(folder)].descriptor(); }

}  // namespace zeropage::io
