// Gathers of pages into their frames, when they are needed and ahead of time.
#include <c10/core/StreamGuard.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <optional>
#include <utility>

#include "zeropage/memory/device_buffer.h"
#include "zeropage/paging/device_wait.h"
#include "zeropage/paging/pager.h"
#include "zeropage/paging/polled_copy.h"

namespace zeropage::paging {

void Pager::start_gather(int page, bool exact) {
  auto& state = pages_[page];
  const std::int64_t bytes = frame_bytes(page);
  const bool fetched = fetch_stream_ && !on_disk(page);
  const bool kept = state.frame != nullptr;  // stale: see drop_stale
  if (fetched) {
    fetch(page);
  } else {
    if (!kept) state.frame = frames_->acquire(bytes);
    state.order.enter(device_);
  }
  state.state = State::kArriving;
  state.rounded = !exact && state.scopes == 0 && is_coded(page);
  if (!kept) stats_.live_bytes += bytes;
  stats_.peak_live_bytes = std::max(stats_.peak_live_bytes, stats_.live_bytes);
  stats_.gathered_bytes += bytes;
  if (fetched) return;
  if (copied_from_peers(page)) return;  // copied when it is waited for: the data is then in the cache of its user
  // All ranks gather the pages of the trace that they have in common.
  std::optional<comm::UncheckedScope> unchecked;
  if (trace_agreed_ && trace_.as_predicted()) unchecked.emplace(*communicator_);
  try {
    const comm::Tag tag{state.label, page};
    state.from_nearby = second_ && second_->has(page) && is_what_operators_read(page);
    if (state.from_nearby) {
      state.gather = second_->gather(page, state.frame, tag);
      return;
    }
    const std::int64_t shard_bytes = layout_->pages()[page].shard_bytes();
    std::byte* shard = state.shard;
    enter_shard(page);
    // Read into its place in the frame, from which it is gathered.
    if (on_disk(page)) {
      shard = state.frame + communicator_->rank() * shard_bytes;
      wait_for_stream(device_, *communicator_, "the copy of parameters from the drive");
      memory::copy_bytes(shard, device_, options_.disk->acquire(page).data(), shard_device(), shard_bytes);
      options_.disk->release(page, /*changed=*/false);
    } else if (shard_device() != device_) {
      shard = state.frame + communicator_->rank() * shard_bytes;
      start_polled_copy(shard, device_, state.shard, shard_device(), shard_bytes, *communicator_,
                        "earlier work, before the copy of parameters from the host");
      note_fetch(memory::current_stream(device_));
    }
    if (state.rounded) return start_coded_gather(page, shard);
    state.gather = communicator_->all_gather(shard, state.frame, shard_bytes, tag);
  } catch (...) {
    release_wire(page);
    drop_frame(page);
    throw;
  }
}

/// Call before the shard is read or written, and when a collective that reads it was waited for: streams that use it
/// are then ordered, also those of operators that use the page on different streams.
void Pager::enter_shard(int page) {
  if (shard_device() == device_) pages_[page].shard_order.enter(device_);
}

/// Copies the page from the shard in host memory, which is the whole page: only its user waits.
void Pager::fetch(int page) {
  auto& state = pages_[page];
  const c10::StreamGuard guard(*fetch_stream_);
  state.frame = frames_->acquire(frame_bytes(page));
  start_polled_copy(state.frame, device_, state.shard, shard_device(), frame_bytes(page), *communicator_,
                    "earlier work, before the copy of parameters from the host");
  state.order.filled_on(*fetch_stream_);
  note_fetch(*fetch_stream_);
}

void Pager::note_fetch(const c10::Stream& stream) {
  if (!last_fetch_) last_fetch_.emplace(device_.type());
  last_fetch_->record(stream);
}

void Pager::wait_for_fetches() {
  if (last_fetch_) wait_for(*last_fetch_, *communicator_, "the copy of parameters from the host");
}

void Pager::finish_gather(int page) {
  auto& state = pages_[page];
  if (state.gather) {
    state.gather->wait();  // a failed gather stays: later touches of the page raise the same error
    state.gather.reset();
    state.from_nearby ? second_->gathered(page) : enter_shard(page);
    if (state.wire != nullptr) decode(page);
    if (second_ && !state.from_nearby && is_what_operators_read(page)) second_->keep(page, state.frame);
  } else if (copied_from_peers(page)) {
    gather_from_peers(page);
  }
  for (auto& home : state.homes) {
    if (const auto storage = home.storage.lock()) fill_storage(storage.get(), state.frame + home.offset_bytes);
  }
  state.state = State::kResident;
}

void Pager::gather_from_peers(int page) {
  const auto& spec = layout_->pages()[page];
  auto& state = pages_[page];
  const std::int64_t shard_bytes = spec.shard_bytes();
  const std::int64_t used_bytes = spec.used_numel * spec.element_bytes;
  const std::int64_t begin_ns = handle_->timeline ? Timeline::now_ns() : 0;
  for (int step = 0; step < communicator_->size(); ++step) {
    // Each rank starts with its own shard, so that ranks do not all read the same peer at once.
    const int rank = (communicator_->rank() + step) % communicator_->size();
    const std::int64_t begin = rank * shard_bytes;
    const std::int64_t length = std::min(shard_bytes, used_bytes - begin);
    if (length <= 0) continue;
    const std::byte* source = state.shard;
    if (rank != communicator_->rank()) {
      auto* cell = reinterpret_cast<const std::uint64_t*>(communicator_->peer_address(rank, versions_->data())) + page;
      auto ready = [cell, expected = state.version] {
        return std::atomic_ref<std::uint64_t>(*const_cast<std::uint64_t*>(cell)).load(std::memory_order_acquire) >=
               expected;
      };
      if (!ready()) communicator_->wait_until(ready, rank, state.label);
      source = communicator_->peer_address(rank, state.shard);
    }
    if (state.rounded) {
      optim::round_to_blocks(kWireCode, spec.dtype, source, state.frame + begin, length / spec.element_bytes);
    } else {
      std::memcpy(state.frame + begin, source, length);
    }
  }
  if (handle_->timeline) {
    const std::int64_t end_ns = Timeline::now_ns();
    handle_->timeline->add(
        {SpanKind::kGather, "copy", state.label, used_bytes, begin_ns, end_ns, /*waited_ns=*/end_ns - begin_ns});
  }
}

/// Reads from the drive the pages that are next in the trace and neither resident nor arriving.
void Pager::read_ahead() {
  if (!options_.disk || !trace_.as_predicted()) return;
  const auto& predicted = trace_.predicted();
  std::vector<int> next;
  for (auto at = trace_.position(); at < static_cast<std::int64_t>(predicted.size()); ++at) {
    if (static_cast<int>(next.size()) == options_.disk->read_ahead_count()) break;
    const int page = predicted[at];
    if (!on_disk(page) || pages_[page].state != State::kAbsent || std::ranges::find(next, page) != next.end()) continue;
    next.push_back(page);
  }
  options_.disk->read_ahead(next);
}

void Pager::prefetch() {
  // These are copies by this thread: starting them early would save nothing.
  if ((communicator_->one_sided() && !fetch_stream_) || options_.prefetch_bytes <= 0 || !trace_.as_predicted()) return;
  const auto& predicted = trace_.predicted();
  std::int64_t budget = options_.prefetch_bytes;
  for (std::int64_t next = trace_.position(); next < static_cast<std::int64_t>(predicted.size()); ++next) {
    const int page = predicted[next];
    const std::int64_t bytes = frame_bytes(page);
    budget -= bytes;
    if (budget < 0) return;
    if (pages_[page].state != State::kAbsent) continue;
    while (stats_.live_bytes + bytes > options_.max_live_bytes) {
      const int victim = choose_victim(next + 1);
      if (victim < 0 || pages_[victim].dirty) return;
      evict(victim);
    }
    start_gather(page);
    ++stats_.prefetches;
  }
}

}  // namespace zeropage::paging
