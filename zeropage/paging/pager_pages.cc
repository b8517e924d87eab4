// Pages added to a pager after its construction, and the pager after the end of its engine.
#include <atomic>
#include <utility>

#include "zeropage/paging/pager.h"

namespace zeropage::paging {

void Pager::allocate_versions() {
  if (!communicator_->one_sided()) return;
  const auto cells = static_cast<std::int64_t>(layout_->pages().size() * sizeof(std::uint64_t));
  versions_ = communicator_->allocate(cells, "page versions");
  for (std::size_t page = 0; page < pages_.size(); ++page) {
    auto* cell = reinterpret_cast<std::uint64_t*>(versions_->data()) + page;
    std::atomic_ref<std::uint64_t>(*cell).store(pages_[page].version, std::memory_order_release);
  }
}

/// Adds second shards of the pages from `first` on, except of pages on a drive, for which memory has no room.
void Pager::add_second_shards(std::size_t first) {
  if (!second_) return;
  std::vector<std::int64_t> bytes;
  for (std::size_t page = first; page < pages_.size(); ++page) {
    const int index = static_cast<int>(page);
    bytes.push_back(pages_[page].paged && !on_disk(index) ? frame_bytes(index) : 0);
  }
  second_->add(bytes);
}

void Pager::add_pages(const std::vector<bool>& paged) {
  auto guard = lock();
  const std::size_t first = pages_.size();
  pages_.resize(layout_->pages().size());
  std::int64_t bytes = 0;
  for (std::size_t page = first; page < pages_.size(); ++page) {
    pages_[page].paged = paged[page];
    pages_[page].added = true;
    pages_[page].label = page_label(*layout_, static_cast<int>(page));
    if (paged[page]) bytes += layout_->pages()[page].shard_bytes();
  }
  add_second_shards(first);
  trace_ = Trace(static_cast<int>(pages_.size()));
  trace_agreed_ = false;
  if (handle_->timeline) observe(handle_->timeline);
  if (bytes == 0) return;
  std::byte* next = nullptr;
  if (shard_device() != device_) {
    added_host_shards_.push_back(
        std::make_unique<memory::DeviceBuffer>(bytes, *options_.host, ledger_, MemoryKind::kParameters));
    next = added_host_shards_.back()->data();
  } else {
    added_shards_.push_back(communicator_->allocate(bytes, "parameter shards"));
    added_entries_.emplace_back(ledger_, MemoryKind::kParameters, bytes,
                                options_.host ? options_.host->tier : Tier::kDevice);
    next = added_shards_.back()->data();
  }
  allocate_versions();
  for (std::size_t page = first; page < pages_.size(); ++page) {
    if (paged[page]) pages_[page].shard = std::exchange(next, next + layout_->pages()[page].shard_bytes());
  }
}

void Pager::end_engine() {
  auto guard = lock();
  handle_->timeline.reset();
  on_write_back(nullptr, nullptr);  // there are no masters that have to follow
  trace_ = Trace(static_cast<int>(pages_.size()));
  trace_agreed_ = false;
  stop_coding();
  engine_has_ended_ = true;
}

}  // namespace zeropage::paging
