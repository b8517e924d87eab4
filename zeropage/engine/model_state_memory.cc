// Where the pages of a model's state live: memory and drives, and the host while they are unloaded.
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "zeropage/base/error.h"
#include "zeropage/engine/disk_home.h"
#include "zeropage/engine/model_state.h"

namespace zeropage::engine {

void ModelState::allocate() {
  const auto& pages = layout_->pages();
  paging::PagerOptions options;
  const std::int64_t element = element_bytes(compute_dtype_);
  options.max_live_bytes = config_.zero.max_live_numel * element;
  options.prefetch_bytes = config_.zero.prefetch_bucket_numel * element;
  options.max_reuse_distance_bytes = config_.zero.max_reuse_distance_numel * element;
  options.host = parameter_host(config_, device_);
  std::vector<bool> paged;
  std::int64_t whole_bytes = 0;
  offloaded_ = plan::offloaded_pages(*layout_, plan::offloaded_share(config_));
  StateShape shape;
  shape.offloaded = offloaded_;
  shape.masters = has_masters();
  shape.states = config::optimizer_state_count(config_.optimizer);
  shape.dtype = config_.state_dtype;
  for (std::size_t i = 0; i < shape.squares.size(); ++i) {
    shape.squares[i] = optim::is_sum_of_squares(config_.optimizer.kind, static_cast<int>(i));
  }
  for (const auto& page : pages) {
    // At world size 1 the shard is the page: nothing to gather, unless it lives elsewhere.
    paged.push_back(placement_.shard_parameters && !page.persistent && (communicator_->size() > 1 || options.host));
    if (!paged.back()) whole_bytes += page.padded_bytes();
    const std::int64_t own_numel = placement_.shard_optimizer ? page.shard_numel : page.padded_numel;
    shape.numel.push_back(page.trainable ? own_numel : 0);
    const std::int64_t own_begin = placement_.shard_optimizer ? communicator_->rank() * page.shard_numel : 0;
    const auto pieces =
        static_cast<std::int64_t>(pieces_of(*layout_, page.index, own_begin, own_begin + own_numel).size());
    shape.blocks.push_back(own_numel / optim::kPackedBlockNumel + pieces + 1);
  }
  options.disk = parameter_disk_ = make_parameter_disk(*layout_, config_, communicator_->rank(), ledger_);
  pager_ = std::make_unique<paging::Pager>(layout_, paged, communicator_, device_, ledger_, options);
  pager_->on_write_back([this](int page) { announce_user_write(page); },
                        [this](int page, std::byte* shard) { follow_user_writes(page, shard); });

  home_ = make_state_home(shape, *layout_, config_, communicator_->rank(), device_, ledger_);
  whole_.resize(pages.size(), nullptr);
  owned_.resize(pages.size());
  for (const auto& page : pages) {
    auto& own = owned_[page.index];
    own.begin = placement_.shard_optimizer ? communicator_->rank() * page.shard_numel : 0;
    own.numel = placement_.shard_optimizer ? page.shard_numel : page.padded_numel;
    own.device = paged[page.index] ? pager_->shard_device() : device_;
  }
  allocate_whole(whole_bytes);
}

/// Memory for the pages that are whole, and where every owned range is.
void ModelState::allocate_whole(std::int64_t bytes) {
  whole_memory_ = communicator_->allocate(std::max<std::int64_t>(bytes, 1), "parameters");
  whole_entry_ = LedgerEntry(ledger_, MemoryKind::kParameters, bytes);
  std::byte* whole = whole_memory_->data();
  for (const auto& page : layout_->pages()) {
    auto& own = owned_[page.index];
    if (pager_->paged(page.index)) {
      own.parameter = pager_->shard(page.index);
    } else {
      whole_[page.index] = std::exchange(whole, whole + page.padded_bytes());
      own.parameter = whole_[page.index] + own.begin * page.element_bytes;
    }
  }
}

/// The communicator owns mappings that the memory needs, so both must outlive the parameters.
std::shared_ptr<void> ModelState::whole_owner() const {
  using Kept = std::pair<std::shared_ptr<comm::Communicator>, std::shared_ptr<comm::Memory>>;
  return std::make_shared<Kept>(communicator_, whole_memory_);
}

void ModelState::unload_parameters(paging::MemoryPlace host) {
  pager_->unload(host);
  std::int64_t bytes = 0;
  for (const auto& page : layout_->pages()) {
    if (pager_->paged(page.index)) continue;
    bytes += page.padded_bytes();
    for (const auto& place : page.placements) {
      auto* storage = storages_[place.parameter].unsafeGetStorageImpl();
      paging::release_storage(storage, fmt::format("parameter '{}' was moved to the host by offload_states(); call "
                                                   "reload_states() before it is used",
                                                   layout_->parameters()[place.parameter].name));
      paging::link_of(storage)->memory.reset();
    }
  }
  away_ = std::make_unique<paging::DeviceBuffer>(bytes, host, ledger_, MemoryKind::kParameters);
  paging::copy_bytes(away_->data(), host.device, whole_memory_->data(), device_, bytes);
  whole_memory_.reset();
  whole_entry_ = LedgerEntry();
}

void ModelState::reload_parameters() {
  pager_->reload();
  allocate_whole(away_->bytes());
  paging::copy_bytes(whole_memory_->data(), device_, away_->data(), c10::kCPU, away_->bytes());
  away_.reset();
  for (const auto& page : layout_->pages()) {
    if (pager_->paged(page.index)) continue;
    for (const auto& place : page.placements) {
      auto* storage = storages_[place.parameter].unsafeGetStorageImpl();
      paging::link_of(storage)->memory = whole_owner();
      paging::fill_storage(storage, whole_[page.index] + place.offset * page.element_bytes);
    }
  }
}
}  // namespace zeropage::engine
