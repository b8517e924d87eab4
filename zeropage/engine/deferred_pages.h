/// \file
/// The tensors of one Init scope (init.h), each with its own page.
///
///   1. take: an operator has made a tensor above the size limit without other references. Its storage gets a link to
///      this object; its memory moves into the storage's Home, which is destroyed with the storage, so a temporary
///      needs no further handling.
///   2. touch: a resident tensor is pinned. An absent one is gathered first, by all ranks: they run the same operators.
///   3. charge: bytes made and gathered count towards the live limit even if they have been freed since, so that ranks
///      whose garbage is collected at different times reach the limit at the same operator. make_room then:
///      a. All ranks compare the tensors made since the last time, by name and shape. b. They exchange the state of
///      every tensor: alive, resident, pinned, written, time of last use. c. Tensors that on every rank are alive,
///      resident and not in use are evicted, in the order of rank 0's last use, until half of the limit is free. The
///      remaining bytes are the new charge.
///   4. evict: a tensor that was written since its last gather is broadcast by rank 0; each rank keeps its shard of it.
///      The memory is freed, and the storage's guard explains its absence.
///   5. The engine reads each parameter once (which gathers it) and gives it another storage, which ends its Home.
///
/// Pages have weak references to their storages, and a Home has a reference to the pages object, which therefore exists
/// as long as any of its tensors.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>

#include "zeropage/comm/communicator.h"
#include "zeropage/io/scratch.h"
#include "zeropage/memory/device_buffer.h"
#include "zeropage/paging/fallback.h"
#include "zeropage/paging/parameter_link.h"
#include "zeropage/paging/stream_order.h"

namespace zeropage::engine {

struct DeferredOptions {
  std::int64_t limit_bytes = INT64_MAX;  ///< resident at once; one operator's own tensors may exceed it
  std::int64_t smallest_bytes = 4096;    ///< smaller tensors are ignored
  std::shared_ptr<io::Scratch> disk;     ///< the drive for shards; null: they stay in memory
};

class DeferredPages final : public paging::PageTable,
                            public paging::ResultWatcher,
                            public std::enable_shared_from_this<DeferredPages> {
 public:
  DeferredPages(std::shared_ptr<comm::Communicator> communicator, c10::Device device, const DeferredOptions& options);
  ~DeferredPages();
  DeferredPages(const DeferredPages&) = delete;
  DeferredPages& operator=(const DeferredPages&) = delete;

  /// Increases from scope to scope; scopes have the same order on all ranks.
  std::int64_t number() const { return number_; }

  /// Gives the tensor's storage a home here, unless it is small, on another device, or has a home already. Errors:
  /// PeerError (ranks have made different tensors), TimeoutError.
  void take(const at::Tensor& result, std::string_view op) override;

  void touch(int page, bool writes, std::string_view user) override;
  void unpin(int page) override;
  void note_write(int) override {}                           // no page is always resident
  void explain_absence(int, const std::string&) override {}  // only an engine's observer asks

  /// Every rank gets `root`'s values of a pinned page. Collective.
  void broadcast(int page, int root);

  /// Returns the memory of a pinned page to its storage and removes the page.
  void settle(int page);

 private:
  using StoragePtr = c10::intrusive_ptr<c10::StorageImpl>;
  struct Home;
  struct Page {
    c10::weak_intrusive_ptr<c10::StorageImpl> storage;
    std::int64_t bytes = 0;
    std::string label{};
    int pins = 0;
    bool dirty = true;  // rank 0's values are not in the shards
    std::int64_t last_touch = 0;
    paging::StreamOrder order{};  // of those that use the memory, or the shard
  };
  struct Report;

  std::unique_lock<std::mutex> lock() const;
  bool fits(const at::Tensor& tensor) const;
  StoragePtr storage_of(int page, const Page& state) const;
  static Home& home_of(const StoragePtr& storage);
  std::int64_t shard_bytes(const Page& state) const;
  void charge(std::int64_t bytes, int in_use);
  void make_room(int in_use);
  void gather(int page, Page& state, const StoragePtr& storage);
  void evict(int page, Page& state, const StoragePtr& storage);

  const std::int64_t number_;
  std::shared_ptr<comm::Communicator> communicator_;
  c10::Device device_;
  DeferredOptions options_;
  std::shared_ptr<paging::PagerHandle> handle_;
  std::map<int, Page> pages_;  // the same keys on all ranks
  int next_page_ = 0;
  std::int64_t touch_clock_ = 0;
  std::int64_t charged_bytes_ = 0;
  std::string made_;  // since the last make_room, one line per tensor
  mutable std::mutex mutex_;
};

}  // namespace zeropage::engine
