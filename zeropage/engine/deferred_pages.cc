#include "zeropage/engine/deferred_pages.h"

#include <ATen/DeviceAccelerator.h>
#include <c10/core/impl/COW.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <utility>
#include <vector>

#include "zeropage/base/blocking.h"
#include "zeropage/base/checked.h"
#include "zeropage/base/error.h"
#include "zeropage/engine/agreement.h"
#include "zeropage/memory/device_buffer.h"
#include "zeropage/paging/device_wait.h"

namespace zeropage::engine {
namespace {

constexpr std::int64_t kShardAlignmentBytes = 64;

std::int64_t next_number() {
  static std::atomic<std::int64_t> made{0};
  return made++;
}

}  // namespace

/// Kept alive by a storage's link: the memory, all or this rank's part of it, and the pages object.
struct DeferredPages::Home {
  at::DataPtr frame;           // all of the memory; null while absent
  at::DataPtr shard;           // null until the first eviction
  io::Scratch::Piece on_disk;  // instead, where there is a drive
  std::shared_ptr<DeferredPages> pages;

  ~Home() {
    if (pages && pages->options_.disk) pages->options_.disk->drop(on_disk);
  }
};

/// A page's record in the exchange of make_room.
struct DeferredPages::Report {
  std::int64_t last_touch = 0;
  bool alive = false;
  bool resident = false;
  bool pinned = false;
  bool dirty = false;
};

DeferredPages::DeferredPages(std::shared_ptr<comm::Communicator> communicator, c10::Device device,
                             const DeferredOptions& options)
    : number_(next_number()),
      communicator_(std::move(communicator)),
      device_(device),
      options_(options),
      handle_(std::make_shared<paging::PagerHandle>()) {
  handle_->pager.store(this);
}

DeferredPages::~DeferredPages() { handle_->pager.store(nullptr); }

std::unique_lock<std::mutex> DeferredPages::lock() const {
  std::unique_lock<std::mutex> guard(mutex_, std::try_to_lock);
  if (!guard.owns_lock()) {
    auto blocking = enter_blocking();
    guard.lock();
  }
  return guard;
}

bool DeferredPages::fits(const at::Tensor& tensor) const {
  if (!tensor.defined() || tensor.layout() != c10::kStrided || tensor.device() != device_) return false;
  if (!tensor.unsafeGetTensorImpl()->has_storage()) return false;
  c10::StorageImpl* storage = tensor.storage().unsafeGetStorageImpl();
  if (static_cast<std::int64_t>(storage->nbytes()) < options_.smallest_bytes) return false;
  const at::DataPtr& data = storage->_mutable_data_ptr_no_checks();
  return data.get() != nullptr && !c10::impl::cow::is_cow_data_ptr(data) && paging::link_of(storage) == nullptr;
}

void DeferredPages::take(const at::Tensor& result, std::string_view op) {
  if (!fits(result)) return;
  c10::impl::ExcludeDispatchKeyGuard outside(paging::kParameterKey);
  auto self = shared_from_this();
  auto guard = lock();
  const int page = next_page_++;
  c10::StorageImpl* storage = result.storage().unsafeGetStorageImpl();
  Page state{result.storage().getWeakStorageImpl()};
  state.bytes = static_cast<std::int64_t>(storage->nbytes());
  state.label = fmt::format("tensor {} of the Init scope ({}, [{}] {})", page, op, fmt::join(result.sizes(), ", "),
                            c10::toString(result.scalar_type()));
  state.last_touch = ++touch_clock_;
  state.order.enter(device_);
  made_ += state.label + "\n";

  auto home = std::make_shared<Home>();
  home->pages = self;
  auto link = std::make_unique<paging::ParameterLink>();
  link->handle = handle_;
  link->page = page;
  link->paged = true;
  link->deferred = true;
  link->memory = home;
  home->frame = paging::link_storage(storage, std::move(link));
  paging::mark(result);
  const std::int64_t bytes = state.bytes;
  pages_.emplace(page, std::move(state));
  charge(bytes, page);
}

DeferredPages::StoragePtr DeferredPages::storage_of(int page, const Page& state) const {
  StoragePtr storage = state.storage.lock();
  if (!storage) return storage;
  const auto* link = paging::link_of(storage.get());
  // Operators that resize a storage in place replace its memory.
  return link != nullptr && link->handle == handle_ && link->page == page ? storage : StoragePtr();
}

DeferredPages::Home& DeferredPages::home_of(const StoragePtr& storage) {
  return *static_cast<Home*>(paging::link_of(storage.get())->memory.get());
}

std::int64_t DeferredPages::shard_bytes(const Page& state) const {
  return checked_round_up(ceil_div(state.bytes, communicator_->size()), kShardAlignmentBytes, state.label);
}

void DeferredPages::touch(int page, bool writes, std::string_view user) {
  c10::impl::ExcludeDispatchKeyGuard outside(paging::kParameterKey);
  auto self = shared_from_this();
  auto guard = lock();
  auto& state = pages_.at(page);
  const StoragePtr storage = storage_of(page, state);
  state.order.enter(device_);
  if (storage && !home_of(storage).frame) {
    try {
      charge(state.bytes, page);
      gather(page, state, storage);
    } catch (const PeerError& error) {
      throw PeerError(fmt::format("{} needs {}, which could not be gathered: {}", user, state.label, error.what()));
    } catch (const TimeoutError& error) {
      throw TimeoutError(fmt::format("{} needs {}, which could not be gathered: {}", user, state.label, error.what()));
    }
  }
  ++state.pins;
  state.dirty |= writes;
  state.last_touch = ++touch_clock_;
}

void DeferredPages::unpin(int page) {
  auto self = shared_from_this();
  auto guard = lock();
  const auto found = pages_.find(page);
  if (found != pages_.end()) --found->second.pins;
}

void DeferredPages::charge(std::int64_t bytes, int in_use) {
  charged_bytes_ += bytes;
  if (charged_bytes_ > options_.limit_bytes) make_room(in_use);
}

void DeferredPages::make_room(int in_use) {
  comm::Communicator& job = communicator_->job();
  require_same_everywhere(*communicator_, fmt::format("{}{} tensors are known\n", made_, pages_.size()));
  made_.clear();

  std::vector<StoragePtr> storages;  // held: what is reported as alive stays so until the end
  std::vector<Report> mine;
  for (const auto& [page, state] : pages_) {
    storages.push_back(storage_of(page, state));
    Report& report = mine.emplace_back();
    report.last_touch = state.last_touch;
    report.alive = static_cast<bool>(storages.back());
    report.resident = report.alive && home_of(storages.back()).frame;
    report.pinned = state.pins > 0 || page == in_use;
    report.dirty = state.dirty;
  }
  const std::string_view sent(reinterpret_cast<const char*>(mine.data()), mine.size() * sizeof(Report));
  const std::string all = comm::all_gather_small(job, sent, comm::Tag{"tensors of the Init scope"});
  std::vector<Report> theirs(mine.size() * job.size());
  std::memcpy(theirs.data(), all.data(), all.size());

  struct Candidate {
    std::int64_t last_touch;
    std::size_t index;
    int page;
  };
  std::vector<Candidate> candidates;
  std::vector<int> dead;
  charged_bytes_ = 0;
  std::size_t index = 0;
  for (auto& [page, state] : pages_) {
    const auto of_rank = [&, i = index](int rank) -> const Report& { return theirs[rank * mine.size() + i]; };
    int alive = 0, resident = 0, pinned = 0;
    for (int rank = 0; rank < job.size(); ++rank) {
      alive += of_rank(rank).alive;
      resident += of_rank(rank).resident;
      pinned += of_rank(rank).pinned;
      state.dirty |= of_rank(rank).dirty;
    }
    if (resident > 0) charged_bytes_ += state.bytes;
    if (alive == 0) dead.push_back(page);
    if (resident == job.size() && pinned == 0) candidates.push_back({of_rank(0).last_touch, index, page});
    ++index;
  }
  std::sort(candidates.begin(), candidates.end(), [](const auto& a, const auto& b) {
    return std::pair(a.last_touch, a.page) < std::pair(b.last_touch, b.page);
  });
  for (const auto& candidate : candidates) {
    if (charged_bytes_ <= options_.limit_bytes / 2) break;
    auto& state = pages_.at(candidate.page);
    evict(candidate.page, state, storages[candidate.index]);
    charged_bytes_ -= state.bytes;
  }
  for (int page : dead) pages_.erase(page);
}

void DeferredPages::gather(int page, Page& state, const StoragePtr& storage) {
  Home& home = home_of(storage);
  const std::int64_t part_bytes = shard_bytes(state);
  at::DataPtr frame = memory::make_owned_buffer(part_bytes * communicator_->size(), device_);
  const void* shard = home.shard.get();
  if (options_.disk) {
    std::byte* own = static_cast<std::byte*>(frame.get()) + communicator_->rank() * part_bytes;
    paging::wait_for_stream(device_, *communicator_, "the copy of a tensor of the Init scope from the drive");
    options_.disk->get(home.on_disk, [&](std::span<std::byte> from, std::int64_t offset) {
      memory::copy_bytes(own + offset, device_, from.data(), c10::kCPU, static_cast<std::int64_t>(from.size()));
    });
    shard = own;
  }
  communicator_->all_gather(shard, frame.get(), part_bytes, comm::Tag{state.label, page})->wait();
  home.frame = std::move(frame);
  paging::fill_storage(storage.get(), home.frame.get());
}

void DeferredPages::evict(int page, Page& state, const StoragePtr& storage) {
  Home& home = home_of(storage);
  state.order.enter(device_);
  if (state.dirty) {
    auto* frame = static_cast<std::byte*>(home.frame.get());
    communicator_->job().broadcast(frame, state.bytes, 0, comm::Tag{state.label, page})->wait();
    const std::int64_t part_bytes = shard_bytes(state);
    const std::int64_t begin = std::min(state.bytes, communicator_->rank() * part_bytes);
    const std::int64_t length = std::min(part_bytes, state.bytes - begin);
    if (options_.disk) {
      options_.disk->drop(std::exchange(home.on_disk, {}));
      paging::wait_for_stream(device_, *communicator_, "the copy of a tensor of the Init scope to the drive");
      home.on_disk = options_.disk->put(state.label, length, [&](std::span<std::byte> to, std::int64_t offset) {
        memory::copy_bytes(to.data(), c10::kCPU, frame + begin + offset, device_, static_cast<std::int64_t>(to.size()));
      });
    } else {
      if (!home.shard) home.shard = memory::make_owned_buffer(part_bytes, device_);
      memory::copy_bytes(home.shard.get(), frame + begin, length, device_);
    }
    state.dirty = false;
  }
  paging::release_storage(
      storage.get(), paging::not_resident_message(state.label, "zeropage::gathered", ", or do it after initialize."));
  // It may be what torch's allocator gave an operator on another stream.
  if (!device_.is_cpu()) {
    at::getDeviceAllocator(device_.type())->recordStream(home.frame, memory::current_stream(device_));
  }
  home.frame.clear();
}

void DeferredPages::broadcast(int page, int root) {
  c10::impl::ExcludeDispatchKeyGuard outside(paging::kParameterKey);
  auto self = shared_from_this();
  auto guard = lock();
  auto& state = pages_.at(page);
  const StoragePtr storage = storage_of(page, state);
  if (!storage) return;
  communicator_->job().broadcast(home_of(storage).frame.get(), state.bytes, root, comm::Tag{state.label, page})->wait();
  state.dirty = true;
}

void DeferredPages::settle(int page) {
  auto self = shared_from_this();
  auto guard = lock();
  const StoragePtr storage = storage_of(page, pages_.at(page));
  pages_.erase(page);
  if (!storage) return;
  at::DataPtr frame = std::move(home_of(storage).frame);
  storage->set_data_ptr_noswap(std::move(frame));
}

}  // namespace zeropage::engine
