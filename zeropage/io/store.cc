#include "zeropage/io/store.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "zeropage/base/checked.h"
#include "zeropage/base/error.h"
#include "zeropage/io/job_files.h"

namespace zeropage::io {

/// `in_force`: the slot that reads see; -1: nothing was committed yet.
struct Store::Extent {
  std::string name;
  std::int64_t bytes = 0;
  std::vector<Block> slots[2] = {};
  int in_force = -1;
  bool written = false;  // since the last commit

  int other_slot() const { return in_force == 0 ? 1 : 0; }
};

struct Store::Files {
  Files(int buffer_count, std::int64_t buffer_bytes) : arena(buffer_count, buffer_bytes) {}
  Arena arena;
  std::vector<JobFile> files;
};

namespace {

/// Deals blocks to the folders in turn, each right behind the last of its folder.
class Dealer {
 public:
  Dealer(std::size_t folders, std::int64_t block_bytes) : ends_(folders, 0), block_bytes_(block_bytes) {}

  std::vector<Block> deal(std::int64_t bytes) {
    std::vector<Block> blocks;
    for (std::int64_t rest = aligned(bytes); rest > 0; rest -= block_bytes_) {
      const std::int64_t size = std::min(rest, block_bytes_);
      std::int64_t& end = ends_[next_];
      blocks.push_back({static_cast<int>(next_), end, size, 0});
      end = checked_add(end, size, "bytes of the store");
      next_ = (next_ + 1) % ends_.size();
    }
    return blocks;
  }

  const std::vector<std::int64_t>& ends() const { return ends_; }

 private:
  std::vector<std::int64_t> ends_;
  std::int64_t block_bytes_;
  std::size_t next_ = 0;
};

void check(const StoreOptions& options) {
  if (options.folders.empty()) throw UsageError("a store needs a folder (nvme_path)");
  if (options.block_bytes < 1 || options.queue_depth < 1) {
    throw UsageError(fmt::format("a store with blocks of {} bytes, {} at a time: both must be at least 1",
                                 options.block_bytes, options.queue_depth));
  }
}

}  // namespace

Store::Store(StoreOptions options, std::vector<ExtentSpec> extents) : options_(std::move(options)) {
  check(options_);
  Dealer dealer(options_.folders.size(), aligned(options_.block_bytes));
  std::int64_t largest = kAlignment;
  for (ExtentSpec& spec : extents) {
    Extent extent{.name = std::move(spec.name), .bytes = spec.bytes};
    for (std::vector<Block>& slot : extent.slots) slot = dealer.deal(spec.bytes);
    largest = std::max(largest, spec.bytes);
    extents_.push_back(std::move(extent));
  }
  if (options_.buffer_bytes == 0) options_.buffer_bytes = largest;
  if (largest > aligned(options_.buffer_bytes)) {
    throw UsageError(fmt::format("an extent of {} bytes does not fit a buffer of {}", largest, options_.buffer_bytes));
  }
  files_ = std::make_shared<Files>(options_.buffer_count, options_.buffer_bytes);
  Mover::Options moving;
  moving.queue.kind = options_.queue;
  moving.queue.depth = options_.queue_depth * static_cast<int>(options_.folders.size());
  moving.queue.arena = &files_->arena;
  moving.wrap_queue = options_.wrap_queue;
  moving.timeout_ms = options_.timeout_ms;
  moving.keep = files_;
  for (std::size_t i = 0; i < options_.folders.size(); ++i) {
    const JobFile& file = files_->files.emplace_back(options_.folders[i], options_.owner, dealer.ends()[i]);
    moving.queue.files.push_back(file.descriptor());
    moving.paths.push_back(file.path());
  }
  mover_ = std::make_unique<Mover>(std::move(moving));
}

Store::~Store() = default;

int Store::buffer_count() const { return files_->arena.count(); }

std::span<std::byte> Store::buffer(int index) const { return files_->arena.buffer(index); }

void Store::check_arguments(int extent, int buffer) const {
  if (extent < 0 || extent >= static_cast<int>(extents_.size()) || buffer < 0 || buffer >= buffer_count()) {
    throw UsageError(fmt::format("extent {} of {} and buffer {} of {}: there is no such thing", extent, extents_.size(),
                                 buffer, buffer_count()));
  }
}

Store::Ticket Store::move(bool write, std::vector<Block>& blocks, const std::string& name, int buffer) {
  auto transfer = std::make_shared<Transfer>();
  transfer->write = write;
  transfer->buffer = buffer;
  transfer->name = name;
  transfer->blocks = &blocks;
  mover_->start(transfer);
  return transfer;
}

Store::Ticket Store::read(int extent, int buffer) {
  check_arguments(extent, buffer);
  Extent& from = extents_[static_cast<std::size_t>(extent)];
  if (from.in_force < 0) throw UsageError(fmt::format("read of {}: nothing was committed to it yet", from.name));
  return move(false, from.slots[from.in_force], from.name, buffer);
}

Store::Ticket Store::write(int extent, int buffer) {
  check_arguments(extent, buffer);
  Extent& to = extents_[static_cast<std::size_t>(extent)];
  if (to.written)
    throw UsageError(fmt::format("write of {}: it was written already; commit() or abandon() first", to.name));
  to.written = true;
  writes_.push_back(move(true, to.slots[to.other_slot()], to.name, buffer));
  return writes_.back();
}

void Store::wait(const Ticket& ticket) { mover_->wait(ticket); }

bool Store::finished(const Ticket& ticket) const { return mover_->finished(ticket); }

void Store::commit() {
  for (const Ticket& ticket : writes_) {
    if (!mover_->finished(ticket)) throw UsageError(fmt::format("commit: {} is still being written", ticket->name));
    if (!ticket->error.empty())
      throw UsageError(fmt::format("commit: {} could not be written; abandon() instead", ticket->name));
  }
  for (Extent& extent : extents_) {
    if (extent.written) extent.in_force = extent.other_slot();
    extent.written = false;
  }
  writes_.clear();
}

void Store::abandon() {
  for (const Ticket& ticket : writes_) {
    try {
      mover_->wait(ticket);
    } catch (const IoError&) {
      // Its slot was not in force and will not be.
    }
  }
  for (Extent& extent : extents_) extent.written = false;
  writes_.clear();
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
