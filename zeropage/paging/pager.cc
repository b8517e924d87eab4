#include "zeropage/paging/pager.h"

#include <c10/core/impl/VirtualGuardImpl.h>
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <utility>

#include "zeropage/base/blocking.h"
#include "zeropage/base/error.h"
#include "zeropage/paging/device_wait.h"

namespace zeropage::paging {
namespace {

/// Bytes of the shards in memory.
std::int64_t total_shard_bytes(const layout::Layout& layout, const std::vector<bool>& paged,
                               const io::PageCache* disk) {
  std::int64_t bytes = 0;
  for (const auto& page : layout.pages()) {
    if (paged[page.index] && !(disk != nullptr && disk->has(page.index))) bytes += page.shard_bytes();
  }
  return bytes;
}

/// The same error preceded by the operator and the page.
template <typename E>
[[noreturn]] void rethrow_with(std::string_view user, const std::string& label, const E& error) {
  throw E(fmt::format("{} needs {}, which could not be gathered: {}", user, label, error.what()));
}

}  // namespace

std::string page_label(const layout::Layout& layout, int page) {
  const auto& placements = layout.pages()[page].placements;
  const auto& first = layout.parameters()[placements.front().parameter].name;
  if (placements.size() == 1) return fmt::format("page {} ({})", page, first);
  return fmt::format("page {} ({} and {} more)", page, first, placements.size() - 1);
}

Pager::Pager(std::shared_ptr<const layout::Layout> layout, std::vector<bool> paged,
             std::shared_ptr<comm::Communicator> communicator, c10::Device device, std::shared_ptr<Ledger> ledger,
             const PagerOptions& options)
    : layout_(std::move(layout)),
      communicator_(std::move(communicator)),
      device_(device),
      ledger_(std::move(ledger)),
      options_(options),
      handle_(std::make_shared<PagerHandle>()),
      trace_(static_cast<int>(layout_->pages().size())) {
  handle_->pager.store(this);
  const auto page_count = static_cast<std::int64_t>(layout_->pages().size());
  std::byte* first_shard = allocate_shards(total_shard_bytes(*layout_, paged, options_.disk.get()));
  frames_ = make_private_frame_pool(device_, options_.max_live_bytes, ledger_, MemoryKind::kFrames);
  pages_.resize(page_count);
  for (const auto& page : layout_->pages()) {
    auto& state = pages_[page.index];
    state.paged = paged[page.index];
    state.label = page_label(*layout_, page.index);
  }
  place_shards(first_shard);
  if (communicator_->nearby_size() > 1) second_ = std::make_unique<SecondShards>(communicator_, device_, ledger_);
  add_second_shards(0);
  if (shard_device() != device_ && communicator_->size() == 1) {
    fetch_stream_ = c10::impl::VirtualGuardImpl(device_.type()).getStreamFromGlobalPool(device_);
  }
}

void Pager::place_shards(std::byte* first) {
  for (const auto& page : layout_->pages()) {
    if (!pages_[page.index].paged || pages_[page.index].added || on_disk(page.index)) continue;
    pages_[page.index].shard = std::exchange(first, first + page.shard_bytes());
  }
}

std::byte* Pager::allocate_shards(std::int64_t bytes) {
  if (bytes == 0) return nullptr;
  if (shard_device() != device_) {
    host_shards_ = std::make_unique<memory::DeviceBuffer>(bytes, *options_.host, ledger_, MemoryKind::kParameters);
    return host_shards_->data();
  }
  shards_ = communicator_->allocate(bytes, "parameter shards");
  const Tier tier = options_.host ? options_.host->tier : Tier::kDevice;
  shards_entry_ = LedgerEntry(ledger_, MemoryKind::kParameters, bytes, tier);
  if (!versions_) allocate_versions();
  return shards_->data();
}

Pager::~Pager() {
  handle_->pager.store(nullptr);
  come_to_rest(device_, *communicator_, "sharded parameters");  // it may have outlived its engine
  for (auto& page : pages_) {
    for (auto& home : page.homes) {
      // There are storages left only if the construction of an engine failed.
      if (const auto storage = home.storage.lock()) {
        release_storage(storage.get(),
                        "This parameter was being sharded when the making of its engine failed; build the model anew.");
      }
    }
  }
}

std::unique_lock<std::mutex> Pager::lock() const {
  std::unique_lock<std::mutex> guard(mutex_, std::try_to_lock);
  if (!guard.owns_lock()) {
    auto blocking = enter_blocking();
    guard.lock();
  }
  return guard;
}

std::unique_ptr<ParameterLink> Pager::make_link(int page, std::shared_ptr<void> memory) const {
  auto link = std::make_unique<ParameterLink>();
  link->handle = handle_;
  link->page = page;
  link->paged = pages_[page].paged;
  link->memory = std::move(memory);
  return link;
}

void Pager::adopt(int page, std::int64_t offset_bytes, const c10::Storage& storage, std::string message) {
  auto guard = lock();
  release_storage(storage.unsafeGetStorageImpl(), message);
  pages_[page].homes.push_back(Home{storage.getWeakStorageImpl(), offset_bytes, std::move(message)});
}

void Pager::touch(int page, bool writes, std::string_view user) { use(page, writes, /*exact=*/writes, user); }

void Pager::use(int page, bool writes, bool exact, std::string_view user) {
  auto guard = lock();
  wait_for_update(guard, page, user);
  auto& state = pages_[page];
  if (unloaded_) {
    throw UsageError(fmt::format(
        "{} needs {}, which offload_states() has moved to the host; call reload_states() first", user, state.label));
  }
  ++stats_.touches;
  if (exact) drop_rounded(page);
  if (state.state != State::kResident) make_resident(page, user, exact);
  state.order.enter(device_);
  ++state.pins;
  count_pins(1);
  state.dirty |= writes;
  state.last_touch = ++touch_clock_;
  if (engine_has_ended_) return;  // passes are no longer ended by steps
  trace_.note(page);
  prefetch();
  read_ahead();
}

void Pager::unpin(int page) {
  auto guard = lock();
  auto& state = pages_[page];
  count_pins(-1);
  if (--state.pins > 0) return;
  drop_exact(page);
  evict_if_far(page);
}

void Pager::mark_dirty(int page) {
  auto guard = lock();
  pages_[page].dirty = true;
}

void Pager::explain_absence(int page, const std::string& cause) {
  auto guard = lock();
  if (pages_[page].state != State::kAbsent) return;
  guard_homes(page, " Cause: " + cause);
}

void Pager::note_write(int page) {
  auto guard = lock();
  pages_[page].written = true;
}

bool Pager::is_written(int page) {
  auto guard = lock();
  return pages_[page].written || pages_[page].dirty;
}

std::vector<int> Pager::take_written() {
  auto guard = lock();
  std::vector<int> written;
  for (std::size_t page = 0; page < pages_.size(); ++page) {
    if (std::exchange(pages_[page].written, false)) written.push_back(static_cast<int>(page));
  }
  return written;
}

void Pager::make_resident(int page, std::string_view user, bool exact) {
  const Span span(handle_->timeline.get(), SpanKind::kFault, user, page);
  ++stats_.faults;
  ++pages_[page].faults;
  try {
    if (pages_[page].state == State::kAbsent) {
      make_room(frame_bytes(page));
      start_gather(page, exact);
    } else if (!pages_[page].gather && !copied_from_peers(page) && !(fetch_stream_ && !on_disk(page))) {
      start_gather(page, exact);  // stale, and kept by a scope
    }
    finish_gather(page);
  } catch (const PeerError& error) {
    rethrow_with(user, pages_[page].label, error);
  } catch (const TimeoutError& error) {
    rethrow_with(user, pages_[page].label, error);
  }
}

void Pager::make_room(std::int64_t bytes) {
  while (stats_.live_bytes + bytes > options_.max_live_bytes) {
    const int victim = choose_victim(trace_.position());
    // All remaining pages are pinned: one operator needs more than the limit, and gets it.
    if (victim < 0) return;
    evict(victim);
  }
}

int Pager::choose_victim(std::int64_t needed_after) const {
  int victim = -1;
  std::int64_t victim_use = -1;
  for (std::size_t page = 0; page < pages_.size(); ++page) {
    const auto& state = pages_[page];
    if (state.state != State::kResident || state.pins > 0) continue;
    const std::int64_t use = trace_.next_use(static_cast<int>(page));
    if (use < needed_after) continue;
    if (use > victim_use || (use == victim_use && state.last_touch < pages_[victim].last_touch)) {
      victim = static_cast<int>(page);
      victim_use = use;
    }
  }
  return victim;
}

void Pager::evict(int page) {
  if (pages_[page].dirty) write_back(page);
  drop_frame(page);
  ++stats_.evictions;
  ++pages_[page].evictions;
}

void Pager::drop_frame(int page) {
  auto& state = pages_[page];
  guard_homes(page);
  frames_->release(state.frame, state.order.leave());
  state.frame = nullptr;
  state.state = State::kAbsent;
  stats_.live_bytes -= frame_bytes(page);
}

/// From now on reads of the absent page's parameters that bypass the dispatcher raise their message.
void Pager::guard_homes(int page, const std::string& addition) {
  for (auto& home : pages_[page].homes) {
    if (const auto storage = home.storage.lock()) release_storage(storage.get(), home.message + addition);
  }
}

void Pager::write_back(int page) {
  if (copied_from_peers(page)) {
    // Peers may still be reading the old shard: continue only when all of them evict this page, too.
    communicator_->barrier(comm::Tag{pages_[page].label, page});
  }
  store_own_shard(page);
  advance_version(page);
}

/// The frame's contents after the page's last parameter are undefined, and are not copied to the shard.
void Pager::store_own_shard(int page) {
  auto& state = pages_[page];
  const auto& spec = layout_->pages()[page];
  const std::int64_t begin = communicator_->rank() * spec.shard_numel;
  const std::int64_t numel = std::clamp<std::int64_t>(spec.used_numel - begin, 0, spec.shard_numel);
  const io::Fill fill = state.rounded ? io::Fill::kRead : io::Fill::kZeros;
  std::byte* shard = on_disk(page) ? options_.disk->acquire(page, fill).data() : state.shard;
  state.order.enter(device_);
  enter_shard(page);
  if (shard_device() != device_) wait_for_stream(device_, *communicator_, "the copy of written parameters to the host");
  if (before_write_back_) before_write_back_(page);
  if (state.rounded) {
    keep_unwritten(page, shard, numel);
  } else {
    memory::copy_bytes(shard, shard_device(), state.frame + begin * spec.element_bytes, device_,
                       numel * spec.element_bytes);
  }
  state.dirty = false;
  ++stats_.write_backs;
  if (written_back_) written_back_(page, shard);
  if (on_disk(page)) options_.disk->release(page, /*changed=*/true);
}

void Pager::advance_version(int page) {
  auto& state = pages_[page];
  if (second_) second_->invalidate(page);
  ++state.version;
  if (!versions_) return;
  auto* cell = reinterpret_cast<std::uint64_t*>(versions_->data()) + page;
  std::atomic_ref<std::uint64_t>(*cell).store(state.version, std::memory_order_release);
  communicator_->notify();
}

void Pager::evict_if_far(int page) {
  if (pages_[page].state != State::kResident) return;  // an update has dropped it, and its scope ends now
  if (options_.max_reuse_distance_bytes == INT64_MAX || pages_[page].dirty || !trace_.as_predicted()) return;
  const std::int64_t use = std::min<std::int64_t>(trace_.next_use(page), trace_.predicted().size());
  std::int64_t distance_bytes = 0;
  for (std::int64_t i = trace_.position(); i < use; ++i) {
    distance_bytes += frame_bytes(trace_.predicted()[i]);
    if (distance_bytes > options_.max_reuse_distance_bytes) {
      evict(page);
      return;
    }
  }
}

std::uint64_t Pager::end_pass() {
  auto guard = lock();
  for (std::size_t page = 0; page < pages_.size(); ++page) {
    if (pages_[page].state == State::kArriving) finish_gather(static_cast<int>(page));
  }
  wait_for_fetches();  // shards may be written from now on
  trace_.end_pass();
  return trace_.hash();
}

void Pager::write_back_dirty() {
  auto guard = lock();
  for (std::size_t page = 0; page < pages_.size(); ++page) {
    if (pages_[page].paged) enter_shard(static_cast<int>(page));  // the caller uses shards on its stream
    if (!pages_[page].dirty) continue;
    store_own_shard(static_cast<int>(page));
    advance_version(static_cast<int>(page));
    drop_exact(static_cast<int>(page));
  }
}

void Pager::drop_stale(const std::vector<int>& updated) {
  auto guard = lock();
  wait_for_fetches();
  for (int page : updated) {
    auto& state = pages_[page];
    if (state.state != State::kResident) continue;
    // Programs may have the address of a page that a scope keeps: the new values go to the same frame.
    const bool keeps_frame = state.scopes > 0 && (!fetch_stream_ || on_disk(page));
    if (keeps_frame) {
      state.state = State::kArriving;
      state.rounded = false;
    } else {
      drop_frame(page);
    }
  }
}

void Pager::publish(int page) {
  auto guard = lock();
  advance_version(page);
}

void Pager::refresh_pinned() {
  auto guard = lock();
  for (std::size_t page = 0; page < pages_.size(); ++page) {
    const auto& state = pages_[page];
    const bool fetched = fetch_stream_ && !on_disk(static_cast<int>(page));
    const bool stale = state.state == State::kArriving && !state.gather && !fetched;
    if (stale && state.pins == 0) {
      drop_frame(static_cast<int>(page));  // its scope has ended meanwhile
    } else if (state.pins > 0 && state.state != State::kResident) {
      make_resident(static_cast<int>(page), "a gathered scope");
    }
  }
}

void Pager::unload(memory::MemoryPlace host) {
  auto guard = lock();
  if (!shards_ || options_.host) return;
  for (std::size_t page = 0; page < pages_.size(); ++page) {
    const auto& state = pages_[page];
    if (state.pins > 0) {
      throw UsageError(
          fmt::format("{} is kept by a scope that gathers it; leave the scope before offload_states()", state.label));
    }
    if (state.state == State::kArriving) finish_gather(static_cast<int>(page));
    if (state.state == State::kResident) evict(static_cast<int>(page));
  }
  frames_->trim();
  const std::int64_t bytes = shards_->bytes();
  unloaded_ = std::make_unique<memory::DeviceBuffer>(bytes, host, ledger_, MemoryKind::kParameters);
  memory::copy_bytes(unloaded_->data(), host.device, shards_->data(), device_, bytes);
  shards_.reset();
  shards_entry_ = LedgerEntry();
  if (second_) second_->unload();
  for (std::size_t page = 0; page < pages_.size(); ++page) {
    guard_homes(static_cast<int>(page), " offload_states() has moved it to the host: call reload_states() first.");
  }
}

void Pager::reload() {
  auto guard = lock();
  if (!unloaded_) return;
  std::byte* first = allocate_shards(unloaded_->bytes());
  memory::copy_bytes(first, device_, unloaded_->data(), c10::kCPU, unloaded_->bytes());
  place_shards(first);
  if (second_) second_->reload();
  unloaded_.reset();
  for (std::size_t page = 0; page < pages_.size(); ++page) guard_homes(static_cast<int>(page));
}

void Pager::trim(bool evict_all) {
  auto guard = lock();
  for (std::size_t page = 0; evict_all && page < pages_.size(); ++page) {
    const auto& state = pages_[page];
    if (state.state == State::kResident && state.pins == 0 && !state.dirty) evict(static_cast<int>(page));
  }
  frames_->trim();
}

PagerStats Pager::stats() const {
  auto guard = lock();
  return stats_;
}

std::vector<PageCounts> Pager::page_counts() const {
  auto guard = lock();
  std::vector<PageCounts> counts;
  for (std::size_t page = 0; page < pages_.size(); ++page) {
    const auto& state = pages_[page];
    if (state.paged) {
      counts.push_back({state.label, frame_bytes(static_cast<int>(page)), state.faults, state.evictions});
    }
  }
  return counts;
}

void Pager::observe(std::shared_ptr<Timeline> timeline) {
  std::vector<std::string> labels;
  for (const auto& page : pages_) labels.push_back(page.label);
  timeline->set_page_labels(std::move(labels));
  handle_->timeline = std::move(timeline);
}

}  // namespace zeropage::paging
