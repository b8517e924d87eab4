/// \file
/// The pager: keeps the pages of sharded parameters resident while operators use them, and within the live limit.
///
/// A page is absent (only the shards exist), arriving (a gather is in progress) or resident (its frame has all values
/// and the parameters' storages point into it).
///   1. touch(page): absent -> make room, gather, wait; arriving -> wait; then pin it and record the touch.
///   2. unpin(page): when the operator has finished. A pinned page is never evicted.
///   3. Eviction chooses the unpinned page whose next use, according to the last pass's trace, is farthest away
///      (without a trace: the least recently used page). A dirty page's own shard is written back first (see
///      write_back).
///   4. After each touch, pages that are next in the trace are gathered ahead, within the prefetch budget and the
///      limit.
///   5. The optimizer step: end_pass, the global check, write_back_dirty, drop_stale, then per page update and publish.
///      Another thread may evaluate the model meanwhile: an UpdateScope waits for its operators, and they wait for the
///      end of the scope. A page kept by a scope stays in its frame, and gets the new values there.
///
/// Versions (one-sided communicators): each rank publishes, per page, the number of times its shard was rewritten. A
/// gather waits until every peer has published the version this rank expects. An owner may rewrite its shard only when
/// no peer can still need the old values: after the step's global check (all ranks are through their backward), or, for
/// a dirty page that must be evicted in the middle of a pass, after a barrier.
///
/// If one rank trains on a device and its shards are in the host's memory, pages are fetched on a separate stream. It
/// waits for the last use of the frame and for updates of the shards, and users of the page wait for its arrival: on
/// the device, not on the host.
///
/// If the communicator has nearby ranks, each keeps its part of gathered pages (second_shards.h). Until a page changes,
/// later gathers use these parts, and nothing from other hosts.
///
/// When its engine ends, the storages of sharded parameters keep the pager (end_engine): values stay readable through
/// the same faults. So the pager itself has weak references to storages.
///
/// Pages may be gathered in 8 bits (PagerOptions::coded, pager_codes.cc): then frames have rounded values, the same on
/// all ranks and for every kind of gather, and shards keep the exact values. Scopes, and operators that write a
/// parameter, find exact values in its frame.
///
/// Shards on a drive (PagerOptions::disk) are read ahead of their use according to the trace, into buffers of the host,
/// and from there into frames. Peers cannot read them: such pages are gathered collectively on every transport.
///
/// Locks. One mutex guards all of a pager. It is held while a page is gathered, waiting for peers included: all ranks
/// start the same gathers in the same order, and an operator of another thread that started one in between would break
/// that. This cannot deadlock: no peer needs this mutex for its part of a gather, the wait releases the host
/// language's lock (base/blocking.h) and ends by a timeout, and who holds the pager's mutex takes neither the reducer's
/// nor that of Speculation. Who waits for the mutex inside of a poll (pager_threads.cc) tries it only.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "zeropage/comm/communicator.h"
#include "zeropage/io/page_cache.h"
#include "zeropage/layout/layout.h"
#include "zeropage/optim/block_codes.h"
#include "zeropage/paging/frame_pool.h"
#include "zeropage/paging/parameter_link.h"
#include "zeropage/paging/second_shards.h"
#include "zeropage/paging/stream_order.h"
#include "zeropage/paging/trace.h"

namespace zeropage::paging {

inline constexpr optim::BlockCode kWireCode = optim::BlockCode::kInt8;

/// Which pages are gathered in 8 bits (optim/block_codes.h) with several ranks.
enum class CodedPages { kNone, kFrozen, kAll };

struct PagerOptions {
  std::int64_t max_live_bytes = INT64_MAX;
  std::int64_t prefetch_bytes = 0;
  std::int64_t max_reuse_distance_bytes =
      INT64_MAX;  ///< an unpinned page needed only after this many bytes is evicted early
  std::optional<memory::MemoryPlace> host = {};  ///< memory of shards; absent: on the device
  CodedPages coded = CodedPages::kNone;
  std::shared_ptr<io::PageCache> disk = {};  ///< drive for the shards of some pages; null: for none
};

/// Counters since the pager was made.
struct PagerStats {
  std::int64_t touches = 0;
  std::int64_t faults = 0;      ///< touches that had to gather or wait for a gather
  std::int64_t prefetches = 0;  ///< gathers started ahead of use
  std::int64_t evictions = 0;
  std::int64_t write_backs = 0;
  std::int64_t gathered_bytes = 0;
  std::int64_t live_bytes = 0;
  std::int64_t peak_live_bytes = 0;
};

/// Counters of one page since the pager was made.
struct PageCounts {
  std::string label;
  std::int64_t bytes = 0;  ///< of its frame
  std::int64_t faults = 0;
  std::int64_t evictions = 0;
};

class Pager final : public PageTable {
 public:
  /// `paged[p]`: whether this pager manages page p of `layout`; the shards of these pages are allocated here,
  /// zero-filled.
  Pager(std::shared_ptr<const layout::Layout> layout, std::vector<bool> paged,
        std::shared_ptr<comm::Communicator> communicator, c10::Device device, std::shared_ptr<Ledger> ledger,
        const PagerOptions& options);
  ~Pager();
  Pager(const Pager&) = delete;
  Pager& operator=(const Pager&) = delete;

  /// Adds the layout's new pages; `paged` is of all pages. Collective, between passes. Their shards are in memory, even
  /// if others are on a drive, and stay there while others are unloaded.
  void add_pages(const std::vector<bool>& paged);

  bool paged(int page) const { return pages_[page].paged; }
  /// Whether operators that read the page get values rounded to 8 bits.
  bool is_coded(int page) const;
  bool on_disk(int page) const { return options_.disk != nullptr && options_.disk->has(page); }

  /// This rank's shard of a paged page: page.shard_bytes() bytes on shard_device(), in the memory of the communicator,
  /// unless the shard is in host memory for another device. Null if it is on the drive.
  std::byte* shard(int page) const { return pages_[page].shard; }
  c10::Device shard_device() const { return options_.host ? options_.host->device : device_; }

  /// Makes `storage` the home of a parameter of a paged page, absent from now on. `message`: the error of raw accesses.
  void adopt(int page, std::int64_t offset_bytes, const c10::Storage& storage, std::string message);

  /// A link for a parameter of `page`, to be carried by its storage; `memory` keeps an always resident page alive.
  std::unique_ptr<ParameterLink> make_link(int page, std::shared_ptr<void> memory = nullptr) const;

  void touch(int page, bool writes, std::string_view user) override;
  void unpin(int page) override;
  void explain_absence(int page, const std::string& cause) override;
  void note_write(int page) override;

  /// Like touch and unpin, for a scope that keeps the page resident, with exact values, while operators and updates
  /// run.
  void touch_for_scope(int page, std::string_view user);
  void unpin_of_scope(int page);

  /// The frame of a page that is pinned by `touch`, and that its contents were written by other means than operators.
  std::byte* frame(int page) const { return pages_[page].frame; }
  void mark_dirty(int page);

  /// Returns and resets the pages written since the last call. Only for always resident pages.
  std::vector<int> take_written();

  /// Whether a user has written this page since the last step.
  bool is_written(int page);

  /// Called with a page before its own shard is replaced by users' writes to the frame, and with both after it.
  void on_write_back(std::function<void(int page)> before, std::function<void(int page, std::byte* shard)> after) {
    before_write_back_ = std::move(before);
    written_back_ = std::move(after);
  }

  /// No engine trains with these pages any more: another one may take their parameters over, which can be read and
  /// written until then by whoever holds the pager. Operators gather them as before, on all ranks alike, without a
  /// prediction and with exact values.
  void end_engine();
  bool engine_has_ended() const { return engine_has_ended_; }

  /// After the global check, in this order. `updated` pages are stale everywhere once the update begins.
  void write_back_dirty();
  /// In an UpdateScope, up to refresh_pinned. Pages kept by a scope are not dropped, but arriving until then.
  void drop_stale(const std::vector<int>& updated);
  void publish(int page);

  /// After the update: pages that a scope keeps resident (pinned) get the new values, in the same memory.
  void refresh_pinned();

  /// Before the global check: waits for prefetches that are not used yet, so that none is in flight, and ends the pass.
  /// Returns the hash of the trace that the next pass is expected to follow.
  std::uint64_t end_pass();

  /// The global check's result: whether all ranks expect the same trace; if not, gathers are checked one by one.
  void set_trace_agreed(bool agreed) { trace_agreed_ = agreed; }

  /// Moves the shards to `host` until `reload`; until then every touch is an error. Shards that are always on the host
  /// do not move. Collective; there must be no readers. Errors: UsageError when a page is pinned.
  void unload(memory::MemoryPlace host);
  void reload();

  /// Returns unused frames to the system, and with `evict_all` evicts every unpinned clean page first.
  void trim(bool evict_all);

  PagerStats stats() const;

  /// Counters of the paged pages.
  std::vector<PageCounts> page_counts() const;

  /// From now on operators, faults and copies are added to `timeline`. Called before the first of them.
  void observe(std::shared_ptr<Timeline> timeline);
  const std::shared_ptr<PagerHandle>& handle() const { return handle_; }

 private:
  friend class UpdateScope;
  enum class State { kAbsent, kArriving, kResident };
  enum class UpdatePhase { kNone, kAnnounced, kRunning };  ///< see pager_threads.cc
  struct Home {
    c10::weak_intrusive_ptr<c10::StorageImpl> storage;
    std::int64_t offset_bytes = 0;
    std::string message;
  };
  struct PageState {
    bool paged = false;
    bool added = false;  ///< by add_pages
    State state = State::kAbsent;
    bool dirty = false;
    bool written = false;
    bool rounded = false;  ///< the frame's values are rounded to 8 bits, or will be
    int pins = 0;
    int scopes = 0;              ///< the number of pins by scopes
    std::byte* shard = nullptr;  ///< [shard_numel, the page's dtype], on shard_device(); null: on the drive
    std::byte* frame = nullptr;  ///< [padded_numel, the page's dtype], on the device; null while absent
    std::byte* wire = nullptr;   ///< all ranks' shards in 8 bits, while they are gathered
    StreamOrder order;           ///< of the frame's users
    StreamOrder shard_order;     ///< of the shard's writers and readers, on the device
    comm::WorkPtr gather;
    bool from_nearby = false;  ///< the gather in progress
    std::uint64_t version = 0;
    std::int64_t last_touch = 0;
    std::int64_t faults = 0;
    std::int64_t evictions = 0;
    std::string label;
    std::vector<Home> homes;
  };

  std::unique_lock<std::mutex> lock() const;
  std::int64_t frame_bytes(int page) const { return layout_->pages()[page].padded_bytes(); }
  std::byte* allocate_shards(std::int64_t bytes);
  void allocate_versions();
  void place_shards(std::byte* first);
  void add_second_shards(std::size_t first);
  bool copied_from_peers(int page) const { return communicator_->one_sided() && !on_disk(page) && !fetch_stream_; }
  void read_ahead();
  void use(int page, bool writes, bool exact, std::string_view user);
  void start_gather(int page, bool exact = false);
  void finish_gather(int page);
  void enter_shard(int page);
  bool is_what_operators_read(int page) const { return pages_[page].rounded || !is_coded(page); }
  void start_coded_gather(int page, const std::byte* shard);
  void decode(int page);
  void release_wire(int page);
  void drop_rounded(int page);
  void drop_exact(int page);
  void stop_coding();
  void keep_unwritten(int page, std::byte* shard, std::int64_t numel) const;
  void fetch(int page);
  void note_fetch(const c10::Stream& stream);
  void wait_for_fetches();
  void gather_from_peers(int page);
  void make_resident(int page, std::string_view user, bool exact = false);
  void make_room(std::int64_t bytes);
  int choose_victim(std::int64_t needed_after) const;
  void evict(int page);
  void drop_frame(int page);
  void set_update(UpdatePhase phase);
  static void count_pins(int count);
  bool must_wait_for_update() const;
  void wait_for_update(std::unique_lock<std::mutex>& guard, int page, std::string_view user);
  void wait_for_operators();
  void guard_homes(int page, const std::string& addition = "");
  void write_back(int page);
  void store_own_shard(int page);
  void advance_version(int page);
  void prefetch();
  void evict_if_far(int page);

  std::shared_ptr<const layout::Layout> layout_;
  std::shared_ptr<comm::Communicator> communicator_;
  c10::Device device_;
  std::shared_ptr<Ledger> ledger_;
  PagerOptions options_;
  std::shared_ptr<PagerHandle> handle_;
  std::unique_ptr<comm::Memory> shards_;
  std::unique_ptr<memory::DeviceBuffer> unloaded_;     // the shards, while they are unloaded
  std::unique_ptr<memory::DeviceBuffer> host_shards_;  // instead, where the communicator has memory of a device
  LedgerEntry shards_entry_;
  std::vector<std::unique_ptr<comm::Memory>> added_shards_;
  std::vector<std::unique_ptr<memory::DeviceBuffer>> added_host_shards_;
  std::vector<LedgerEntry> added_entries_;
  std::unique_ptr<SecondShards> second_;  // null: no ranks are nearby
  std::unique_ptr<comm::Memory> versions_;
  std::unique_ptr<FramePool> frames_;
  std::unique_ptr<FramePool> wires_;         // made when it is needed
  std::optional<c10::Stream> fetch_stream_;  // with one rank whose shards are in host memory
  std::optional<c10::Event> last_fetch_;     // the last copy from the host's memory
  std::vector<PageState> pages_;
  std::function<void(int)> before_write_back_;
  std::function<void(int, std::byte*)> written_back_;
  bool engine_has_ended_ = false;
  Trace trace_;
  bool trace_agreed_ = false;
  UpdatePhase update_phase_ = UpdatePhase::kNone;
  std::thread::id updating_thread_;  // of the last UpdateScope
  std::int64_t touch_clock_ = 0;
  PagerStats stats_;
  mutable std::mutex mutex_;
};

/// Around an update, from before its global check to refresh_pinned. While it exists, operators of other threads wait
/// before they use a page, so that none uses a dropped frame or partly updated values: no rank changes a shard before
/// all ranks have an UpdateScope. One at a time.
class UpdateScope {
 public:
  /// Waits for the operators of other threads. Errors: TimeoutError, when one uses a page for longer than the
  /// communicator waits.
  explicit UpdateScope(Pager& pager);
  ~UpdateScope();
  UpdateScope(const UpdateScope&) = delete;
  UpdateScope& operator=(const UpdateScope&) = delete;

 private:
  Pager& pager_;
};

/// The name of a page in messages: "page 3 (blocks.0.attn.weight and 5 more)".
std::string page_label(const layout::Layout& layout, int page);

}  // namespace zeropage::paging
