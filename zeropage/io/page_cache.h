/// \file
/// Pages on a drive, of which a few are in memory at a time: in the buffers of a store, read ahead and written behind.
///
///   1. read_ahead(pages) says what will be asked for next. As many of these as there are buffers for start to come.
///   2. acquire(page) waits until it is there; its bytes stay where they are until release.
///   3. release(page, changed): in a pass (begin_pass to end_pass) what changed is written behind what follows; outside
///      it is written, and stands, when release returns.
///   4. end_pass() waits for the writes. commit() makes them stand, abandon() takes them back: until then the pages on
///      the drive can be had as they were before.
///
/// A page that nobody wrote yet is zeros and costs nothing. One thread at a time.
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

/// What an acquired page holds: its content; or zeros, since all that matters is written (if it is not, the page is as
/// it was).
enum class Fill { kRead, kZeros };

class PageCache {
 public:
  /// One to use, one to read ahead, one to write behind.
  static constexpr int kFewestBuffers = 3;

  /// `pages`: by their numbers; those of 0 bytes are not here. At least three buffers of the size of the largest page,
  /// which the ledger counts. `what` ("optimizer state") is for the log. Errors: those of Store.
  PageCache(std::string_view what, StoreOptions options, std::vector<ExtentSpec> pages,
            const std::shared_ptr<Ledger>& ledger);

  bool has(int page) const {
    const auto index = static_cast<std::size_t>(page);
    return index < extents_.size() && extents_[index] >= 0;
  }

  /// Forgets what was announced before. Pages that are not here do not count. Errors: those of Store::read.
  void read_ahead(const std::vector<int>& pages);

  /// How many pages it makes sense to announce.
  int read_ahead_count() const { return read_ahead_; }

  void begin_pass(const std::vector<int>& pages);

  /// Errors: IoError when it cannot be read, or differs from what was written; UsageError when all buffers are held.
  std::span<std::byte> acquire(int page, Fill fill = Fill::kRead);

  /// Errors: IoError when it cannot be written; in a pass perhaps at a later call.
  void release(int page, bool changed);

  /// Errors: IoError of any write.
  void end_pass();

  void commit() { store_.commit(); }

  /// Ends a pass, too. Errors: TimeoutError.
  void abandon();

  MoverStats stats() const { return store_.stats(); }
  void observe(std::shared_ptr<Timeline> timeline) { store_.observe(std::move(timeline)); }

 private:
  struct Buffer {
    int page = -1;  ///< whose content it has or is being filled with
    int holders = 0;
    bool replaced = false;  ///< its content is gone: it counts only once it is written
    std::int64_t used = 0;  ///< when it was released
    Store::Ticket ticket;   ///< what is under way; null: nothing
  };

  int buffer_of(int page) const;
  int take_buffer(bool wait_for_write);
  void read_some_ahead();
  void start_reading(int buffer, int page);
  void wait(Buffer& buffer);

  std::vector<int> extents_;  // per page; -1: it is not here
  Store store_;
  LedgerEntry entry_;
  std::vector<Buffer> buffers_;
  std::vector<int> ahead_;  // announced and not acquired yet, the next one at the back
  std::int64_t clock_ = 0;
  int read_ahead_ = 1;
  bool in_pass_ = false;
};

/// A page, held while this lives. When it ends because of an error nothing is written. Errors: as acquire and, at the
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
