#include "zeropage/engine/disk_home.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <utility>

#include "zeropage/base/error.h"
#include "zeropage/base/log.h"

namespace zeropage::engine {
namespace {

constexpr int kNone = -1;

/// One to update, one to read ahead, one to write behind.
constexpr int kFewestBuffers = 3;

class DiskHome final : public StateHome {
 public:
  DiskHome(const StateShape& shape, const std::vector<std::string>& names, io::StoreOptions options,
           std::unique_ptr<StateHome> rest, std::shared_ptr<Ledger> ledger)
      : shape_(shape), rest_(std::move(rest)), extents_(shape.numel.size(), kNone) {
    std::vector<io::ExtentSpec> specs;
    for (std::size_t page = 0; page < extents_.size(); ++page) {
      const std::int64_t bytes = shape.offloaded[page] ? shape.bytes(static_cast<int>(page)) : 0;
      if (bytes == 0) continue;
      extents_[page] = static_cast<int>(specs.size());
      specs.push_back({names[page], bytes});
    }
    written_.resize(specs.size(), false);
    const std::string folders = fmt::format("{}", fmt::join(options.folders, ", "));
    options.buffer_count = std::max(options.buffer_count, kFewestBuffers);
    store_ = std::make_unique<io::Store>(std::move(options), std::move(specs));
    buffers_.resize(static_cast<std::size_t>(store_->buffer_count()));
    read_ahead_ = std::max(1, (store_->buffer_count() - 1) / 2);
    entry_ = LedgerEntry(std::move(ledger), MemoryKind::kBuffers,
                         store_->buffer_count() * static_cast<std::int64_t>(store_->buffer(0).size()), Tier::kHost);
    log_info(
        fmt::format("optimizer state on disk: {} bytes in {}; {}", store_->reserved_bytes(), folders, store_->how()));
    for (const std::string& note : store_->notes()) log_warn(note);
  }

  c10::Device device(int page) const override { return on_disk(page) ? c10::Device(c10::kCPU) : rest_->device(page); }

  std::vector<int> begin_pass(std::vector<int> pages) override {
    pages = rest_->begin_pass(std::move(pages));
    std::ranges::sort(pages);
    if (std::exchange(backwards_, !backwards_)) std::ranges::reverse(pages);
    in_pass_ = true;
    ahead_.clear();
    std::ranges::copy_if(pages, std::back_inserter(ahead_), [&](int page) { return on_disk(page); });
    std::ranges::reverse(ahead_);  // the next one is at the back
    read_some_ahead();
    return pages;
  }

  StateArrays acquire(int page) override {
    if (!on_disk(page)) return rest_->acquire(page);
    std::erase(ahead_, page);
    int index = buffer_of(page);
    if (index == kNone) {
      index = take_buffer(/*wait=*/true);
      start_reading(index, page);
    }
    Buffer& buffer = buffers_[index];
    wait(buffer);
    buffer.held = true;
    read_some_ahead();
    return arrays(index, page);
  }

  void release(int page, bool changed) override {
    if (!on_disk(page)) return rest_->release(page, changed);
    Buffer& buffer = buffers_[buffer_of(page)];
    buffer.held = false;
    buffer.used = ++clock_;
    if (changed) write_home(buffer, page);
    read_some_ahead();
  }

  void end_pass() override {
    in_pass_ = false;
    rest_->end_pass();
    for (Buffer& buffer : buffers_) wait(buffer);
    store_->commit();
  }

  void unload() override { rest_->unload(); }
  void reload() override { rest_->reload(); }

 private:
  struct Buffer {
    int page = kNone;  ///< whose arrays it holds or is being filled with
    bool held = false;
    std::int64_t used = 0;     ///< when it was released
    io::Store::Ticket ticket;  ///< what is under way; null: nothing
  };

  bool on_disk(int page) const { return extents_[page] != kNone; }

  int buffer_of(int page) const {
    const auto found = std::ranges::find(buffers_, page, &Buffer::page);
    return found == buffers_.end() ? kNone : static_cast<int>(found - buffers_.begin());
  }

  /// The buffer whose content is needed last, emptied; kNone when there is none without waiting for a write.
  int take_buffer(bool wait_for_write) {
    int best = kNone;
    for (int i = 0; i < static_cast<int>(buffers_.size()); ++i) {
      const Buffer& buffer = buffers_[i];
      const bool needed = buffer.held || std::ranges::find(ahead_, buffer.page) != ahead_.end();
      const bool writing = buffer.ticket && !store_->finished(buffer.ticket);
      if (needed || (writing && !wait_for_write)) continue;
      if (best == kNone || buffer.used < buffers_[best].used) best = i;
    }
    if (best == kNone && wait_for_write) {
      // Only read ahead: what is needed last of it can be read again.
      const auto last = std::ranges::find_if(ahead_, [&](int page) { return buffer_of(page) != kNone; });
      best = buffer_of(*last);
    }
    if (best == kNone) return kNone;
    wait(buffers_[best]);
    buffers_[best] = {};
    return best;
  }

  void read_some_ahead() {
    const int upcoming = std::min(read_ahead_, static_cast<int>(ahead_.size()));
    for (int i = 0; in_pass_ && i < upcoming; ++i) {
      const int page = ahead_[ahead_.size() - 1 - i];
      if (buffer_of(page) != kNone) continue;
      const int index = take_buffer(/*wait_for_write=*/false);
      if (index == kNone) return;
      start_reading(index, page);
    }
  }

  void start_reading(int index, int page) {
    Buffer& buffer = buffers_[index];
    const int extent = extents_[page];
    if (written_[extent]) {
      buffer.ticket = store_->read(extent, index);
    } else {
      std::ranges::fill(store_->buffer(index), std::byte{0});
    }
    buffer.page = page;
  }

  void write_home(Buffer& buffer, int page) {
    const int extent = extents_[page];
    const int index = static_cast<int>(&buffer - buffers_.data());
    buffer.ticket = store_->write(extent, index);
    if (!in_pass_) commit_one(buffer);
    written_[extent] = true;
  }

  void commit_one(Buffer& buffer) {
    try {
      wait(buffer);
    } catch (const IoError&) {
      store_->abandon();  // what was there before stays
      throw;
    }
    store_->commit();
  }

  /// Until nothing is under way in this buffer. After an error it holds nothing.
  void wait(Buffer& buffer) {
    if (!buffer.ticket) return;
    try {
      store_->wait(buffer.ticket);
    } catch (...) {
      buffer = {};
      throw;
    }
    buffer.ticket = nullptr;
  }

  StateArrays arrays(int index, int page) { return shape_.arrays(page, store_->buffer(index).data()); }

  const StateShape shape_;
  std::unique_ptr<StateHome> rest_;
  std::vector<int> extents_;   // per page; kNone: it is not on disk
  std::vector<bool> written_;  // per extent
  std::unique_ptr<io::Store> store_;
  LedgerEntry entry_;
  std::vector<Buffer> buffers_;
  std::vector<int> ahead_;  // pages of this pass that were not acquired yet, the next one at the back
  std::int64_t clock_ = 0;
  int read_ahead_ = 1;
  bool backwards_ = false;
  bool in_pass_ = false;
};

}  // namespace

std::unique_ptr<StateHome> make_disk_home(const StateShape& shape, const std::vector<std::string>& names,
                                          io::StoreOptions options, std::unique_ptr<StateHome> rest,
                                          std::shared_ptr<Ledger> ledger) {
  return std::make_unique<DiskHome>(shape, names, std::move(options), std::move(rest), std::move(ledger));
}

}  // namespace zeropage::engine
