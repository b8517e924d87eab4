#include "zeropage/engine/init.h"

#include <algorithm>
#include <utility>

#include "zeropage/base/checked.h"
#include "zeropage/engine/deferred_pages.h"
#include "zeropage/engine/disk_state_store.h"
#include "zeropage/engine/sharding.h"
#include "zeropage/paging/fallback.h"
#include "zeropage/paging/scope_allocator.h"

namespace zeropage::engine {
namespace {

constexpr std::int64_t kSmallestBytes = 4096;

paging::ParameterLink* deferred_link(const at::Tensor& tensor) {
  if (!tensor.defined() || !tensor.unsafeGetTensorImpl()->has_storage()) return nullptr;
  auto* link = paging::link_of(tensor.unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl());
  return link != nullptr && link->deferred ? link : nullptr;
}

DeferredPages& pages_of(const paging::ParameterLink& link) {
  return static_cast<DeferredPages&>(*link.handle->pager.load());
}

struct DeferredTensor {
  DeferredPages* home = nullptr;
  int page = 0;
};

/// The deferred ones among the tensors, each once, in an order that all ranks share: callers may pass a set, whose
/// order differs between processes.
std::vector<DeferredTensor> in_common_order(const std::vector<at::Tensor>& tensors) {
  std::vector<DeferredTensor> found;
  for (const auto& tensor : tensors) {
    if (const auto* link = deferred_link(tensor)) found.push_back({&pages_of(*link), link->page});
  }
  const auto key = [](const DeferredTensor& each) { return std::pair(each.home->number(), each.page); };
  std::ranges::sort(found, {}, key);
  const auto same = std::ranges::unique(found, {}, key);
  found.erase(same.begin(), same.end());
  return found;
}

}  // namespace

Init::Init(const config::Config& config, std::shared_ptr<comm::Communicator> communicator, c10::Device device) {
  const bool on_disk = config.zero.offload.parameters == config::OffloadDevice::kNvme;
  if (!sharding_of_stage(config.zero.stage).shard_parameters || (communicator->size() == 1 && !on_disk)) return;
  paging::ensure_fallback();
  paging::ensure_scope_allocator();
  constexpr std::int64_t kElementBytes = 4;
  DeferredOptions options;
  options.limit_bytes = saturating_mul(config.zero.max_live_numel, kElementBytes);
  const std::int64_t persistent_bytes = saturating_mul(config.zero.persistence_threshold_numel, kElementBytes);
  options.smallest_bytes = std::max(kSmallestBytes, std::min(persistent_bytes, INT64_MAX - 1) + 1);
  if (on_disk) {
    auto store = store_options(config, config.zero.offload.parameter_folders, communicator->job().rank());
    options.disk = std::make_shared<io::Scratch>(std::move(store));
  }
  pages_ = std::make_shared<DeferredPages>(std::move(communicator), device, options);
  outer_ = paging::results_watcher();
  paging::watch_results(pages_);
}

Init::~Init() { leave(); }

void Init::leave() {
  if (pages_ && paging::results_watcher() == pages_) paging::watch_results(outer_);
}

void Init::adopt(const at::Tensor& tensor) {
  if (pages_) pages_->take(tensor, "adopted");
}

bool is_deferred(const at::Tensor& tensor) { return deferred_link(tensor) != nullptr; }

void settle(const at::Tensor& tensor) {
  const auto* link = deferred_link(tensor);
  if (link == nullptr) return;
  auto pages = pages_of(*link).shared_from_this();
  const int page = link->page;
  pages->touch(page, /*writes=*/false, "settle");
  pages->settle(page);
  paging::unmark(tensor);
}

void gather_deferred(const std::vector<at::Tensor>& tensors) {
  for (const auto& [home, page] : in_common_order(tensors)) home->touch(page, /*writes=*/false, "a gathered scope");
}

void release_deferred(const std::vector<at::Tensor>& tensors, int modifier_rank) {
  for (const auto& [home, page] : in_common_order(tensors)) {
    if (modifier_rank >= 0) home->broadcast(page, modifier_rank);
    home->unpin(page);
  }
}

}  // namespace zeropage::engine
