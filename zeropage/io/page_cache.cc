#include "zeropage/io/page_cache.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <exception>
#include <utility>

#include "zeropage/base/error.h"
#include "zeropage/base/log.h"

namespace zeropage::io {
namespace {

constexpr int kNone = -1;

std::vector<int> number_extents(const std::vector<ExtentSpec>& pages) {
  std::vector<int> extents;
  int next = 0;
  for (const ExtentSpec& page : pages) extents.push_back(page.bytes > 0 ? next++ : kNone);
  return extents;
}

StoreOptions with_enough_buffers(StoreOptions options) {
  options.buffer_count = std::max(options.buffer_count, PageCache::kFewestBuffers);
  return options;
}

std::vector<ExtentSpec> without_empty(std::vector<ExtentSpec> pages) {
  std::erase_if(pages, [](const ExtentSpec& page) { return page.bytes == 0; });
  return pages;
}

}  // namespace

PageCache::PageCache(std::string_view what, StoreOptions options, std::vector<ExtentSpec> pages,
                     const std::shared_ptr<Ledger>& ledger)
    : extents_(number_extents(pages)),
      store_(with_enough_buffers(options), without_empty(std::move(pages))),
      buffers_(static_cast<std::size_t>(store_.buffer_count())),
      read_ahead_(std::max(1, (store_.buffer_count() - 1) / 2)) {
  const auto buffer_bytes = static_cast<std::int64_t>(store_.buffer(0).size());
  entry_ = LedgerEntry(ledger, MemoryKind::kBuffers, store_.buffer_count() * buffer_bytes, Tier::kHost);
  log_info(fmt::format("{} on disk: {} bytes in {}; {}", what, store_.reserved_bytes(),
                       fmt::join(options.folders, ", "), store_.how()));
  for (const std::string& note : store_.notes()) log_warn(note);
}

void PageCache::read_ahead(const std::vector<int>& pages) {
  ahead_.clear();
  std::copy_if(pages.rbegin(), pages.rend(), std::back_inserter(ahead_), [&](int page) { return has(page); });
  read_some_ahead();
}

void PageCache::begin_pass(const std::vector<int>& pages) {
  in_pass_ = true;
  read_ahead(pages);
}

std::span<std::byte> PageCache::acquire(int page, Fill fill) {
  std::erase(ahead_, page);
  int index = buffer_of(page);
  if (index == kNone) {
    index = take_buffer(/*wait_for_write=*/true);
    if (fill == Fill::kRead) start_reading(index, page);
    buffers_[index].page = page;
  }
  Buffer& buffer = buffers_[index];
  wait(buffer);
  if (fill == Fill::kZeros) {
    std::ranges::fill(store_.buffer(index), std::byte{0});
    buffer.replaced = true;
  }
  ++buffer.holders;
  read_some_ahead();
  return store_.buffer(index);
}

void PageCache::release(int page, bool changed) {
  const int index = buffer_of(page);
  Buffer& buffer = buffers_[index];
  --buffer.holders;
  buffer.used = ++clock_;
  if (std::exchange(buffer.replaced, false) && !changed) buffer = {};
  if (changed) {
    buffer.ticket = store_.write(extents_[page], index);
    if (!in_pass_) {
      try {
        wait(buffer);
      } catch (const IoError&) {
        store_.abandon();  // the earlier content stays
        throw;
      }
      store_.commit();
    }
  }
  read_some_ahead();
}

void PageCache::end_pass() {
  in_pass_ = false;
  ahead_.clear();
  for (Buffer& buffer : buffers_) wait(buffer);
}

void PageCache::abandon() {
  in_pass_ = false;
  ahead_.clear();
  for (Buffer& buffer : buffers_) {
    try {
      wait(buffer);
    } catch (const IoError&) {
      // The next use of the page reads it again.
    }
    buffer.page = kNone;
  }
  store_.abandon();
}

int PageCache::buffer_of(int page) const {
  const auto found = std::ranges::find(buffers_, page, &Buffer::page);
  return found == buffers_.end() ? kNone : static_cast<int>(found - buffers_.begin());
}

/// The buffer whose content is needed last, now empty; kNone when every buffer has a running write and this may not
/// wait.
int PageCache::take_buffer(bool wait_for_write) {
  int best = kNone;
  for (int i = 0; i < static_cast<int>(buffers_.size()); ++i) {
    const Buffer& buffer = buffers_[i];
    const bool needed = buffer.holders > 0 || std::ranges::find(ahead_, buffer.page) != ahead_.end();
    const bool writing = buffer.ticket && !store_.finished(buffer.ticket);
    if (needed || (writing && !wait_for_write)) continue;
    if (best == kNone || buffer.used < buffers_[best].used) best = i;
  }
  if (best == kNone && wait_for_write) {
    // Only buffers that were read ahead are left: the page that is needed last can be read again.
    const auto last = std::ranges::find_if(ahead_, [&](int page) { return buffer_of(page) != kNone; });
    if (last == ahead_.end()) {
      throw UsageError(fmt::format("all {} buffers of the store are in use at once", buffers_.size()));
    }
    best = buffer_of(*last);
  }
  if (best == kNone) return kNone;
  wait(buffers_[best]);
  buffers_[best] = {};
  return best;
}

void PageCache::read_some_ahead() {
  const int upcoming = std::min(read_ahead_, static_cast<int>(ahead_.size()));
  for (int i = 0; i < upcoming; ++i) {
    const int page = ahead_[ahead_.size() - 1 - i];
    if (buffer_of(page) != kNone) continue;
    const int index = take_buffer(/*wait_for_write=*/false);
    if (index == kNone) return;
    start_reading(index, page);
  }
}

void PageCache::start_reading(int index, int page) {
  if (store_.readable(extents_[page])) {
    buffers_[index].ticket = store_.read(extents_[page], index);
  } else {
    std::ranges::fill(store_.buffer(index), std::byte{0});
  }
  buffers_[index].page = page;
}

HeldPage::HeldPage(PageCache& cache, int page, bool changes, Fill fill)
    : cache_(cache),
      page_(page),
      changes_(changes),
      exceptions_(std::uncaught_exceptions()),
      data_(cache.acquire(page, fill).data()) {}

HeldPage::~HeldPage() noexcept(false) {
  const bool failing = std::uncaught_exceptions() > exceptions_;
  try {
    cache_.release(page_, changes_ && !failing);
  } catch (...) {
    if (!failing) throw;  // the error that is being handled has more information
  }
}

/// Waits for the transfer of this buffer. After an error the buffer is empty.
void PageCache::wait(Buffer& buffer) {
  if (!buffer.ticket) return;
  try {
    store_.wait(buffer.ticket);
  } catch (...) {
    buffer = {};
    throw;
  }
  buffer.ticket = nullptr;
}

}  // namespace zeropage::io
