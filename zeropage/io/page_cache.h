/// \file
/// Pages on a drive. A few of them are in memory at a time, in the buffers of a store: pages are read ahead, and
/// written in the background.
///
///   1. read_ahead(pages) announces the next pages. Reads start for as many of them as there are buffers.
///   2. acquire(page) waits until the page is in memory. Its address stays the same until release.
///   3. release(page, changed): in a pass (begin_pass to end_pass) a changed page is written in the background. Outside
///      a pass it is written and committed when release returns.
///   4. end_pass() waits for the writes. commit() makes them permanent, and abandon() discards them. Until then the
///      previous pages are still on the drive.
///
/// A page that was never written reads as zeros, without a read of the drive. One thread at a time may use a cache.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "zeropage/base/ledger.h"
#include "zeropage/io/store.h"

namespace zeropage::io {

/// The content of an acquired page: its bytes, or zeros when the caller writes all of it. (A page that is then released
/// unchanged keeps its old content.)
enum class Fill { kRead, kZeros };

class PageCache {
 public:
  /// One buffer in use, one for reading ahead, one for writing in the background.
  static constexpr int kFewestBuffers = 3;

  /// `pages`: by page number; pages of 0 bytes are not in the cache. There are at least three buffers of the size of
  /// the largest page, and the ledger counts them. `what` ("optimizer state") is for the log. Errors: those of Store.
  PageCache(std::string_view what, StoreOptions options, std::vector<ExtentSpec> pages,
            const std::shared_ptr<Ledger>& ledger);

  bool has(int page) const {
    const auto index = static_cast<std::size_t>(page);
    return index < extents_.size() && extents_[index] >= 0;
  }

  /// Replaces the earlier announcement. Pages that are not in the cache are ignored. Errors: as Store::read.
  void read_ahead(const std::vector<int>& pages);

  /// How many pages should be announced at most.
  int read_ahead_count() const { return read_ahead_; }

  void begin_pass(const std::vector<int>& pages);

  /// Errors: IoError when the page cannot be read, or differs from its last write; UsageError when all buffers are
  /// held.
  std::span<std::byte> acquire(int page, Fill fill = Fill::kRead);

  /// Errors: IoError when the page cannot be written. In a pass a later call may throw it.
  void release(int page, bool changed);

  /// Errors: IoError of any write.
  void end_pass();

  void commit() { store_.commit(); }

  /// Also ends a pass. Errors: TimeoutError.
  void abandon();

  MoverStats stats() const { return store_.stats(); }
  void observe(std::shared_ptr<Timeline> timeline) { store_.observe(std::move(timeline)); }

 private:
  struct Buffer {
    int page = -1;  ///< the page that it contains, or that is being read into it
    int holders = 0;
    bool replaced = false;  ///< its old content is overwritten: the buffer is valid only after it was written
    std::int64_t used = 0;  ///< the time of its release
    Store::Ticket ticket;   ///< the running transfer; null: none
  };

  int buffer_of(int page) const;
  int take_buffer(bool wait_for_write);
  void read_some_ahead();
  void start_reading(int buffer, int page);
  void wait(Buffer& buffer);

  std::vector<int> extents_;  // per page; -1: not in the cache
  Store store_;
  LedgerEntry entry_;
  std::vector<Buffer> buffers_;
  std::vector<int> ahead_;  // announced and not acquired yet, the next one at the back
  std::int64_t clock_ = 0;
  int read_ahead_ = 1;
  bool in_pass_ = false;
};

/// An acquired page, released by the destructor. After an exception nothing is written. Errors: as acquire and, at the
/// end, release.
class HeldPage {
 public:
  HeldPage(PageCache& cache, int page, bool changes, Fill fill = Fill::kRead);
  ~HeldPage() noexcept(false);
  HeldPage(const HeldPage&) = delete;
  HeldPage& operator=(const HeldPage&) = delete;

  std::byte* data() const { return data_; }

 private:
  PageCache& cache_;
  int page_;
  bool changes_;
  int exceptions_;
  std::byte* data_;
};

}  // namespace zeropage::io
