// The memory of a model's pages: memory and drives, and the host while they are unloaded.
#include <ATen/ops/full.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "zeropage/base/error.h"
#include "zeropage/engine/disk_state_store.h"
#include "zeropage/engine/model_state.h"
#include "zeropage/engine/state_pieces.h"

namespace zeropage::engine {

/// Elements of a page that this rank updates, and an upper bound of the blocks of their packed states.
std::pair<std::int64_t, std::int64_t> ModelState::state_size(int page) const {
  const auto& spec = layout_->pages()[page];
  const std::int64_t numel = sharding_.shard_optimizer ? spec.shard_numel : spec.padded_numel;
  const std::int64_t begin = sharding_.shard_optimizer ? communicator_->rank() * spec.shard_numel : 0;
  const auto pieces = static_cast<std::int64_t>(pieces_of(*layout_, page, begin, begin + numel).size());
  return {numel, numel / optim::kPackedBlockNumel + pieces + 1};
}

void ModelState::begin_training(int page) {
  c10::AutoGradMode no_grad(false);
  own_layout_->begin_training(page);
  const auto [numel, blocks] = state_size(page);
  state_store_->add(page, {numel, blocks, offloaded_[page], has_masters(page)});
  const auto& own = owned_[page];
  const auto& spec = layout_->pages()[page];
  const HeldParameter held(*this, page, Access::kRead);
  fill_state(spec, memory::flat_view(held.data(), own.numel, scalar_type_of(spec.dtype), own.device).to(at::kFloat));
  for (const auto& place : spec.placements) {
    if (needs_mark(page)) paging::mark(tensors_[place.parameter]);
  }
}

void ModelState::forget_moments(int parameter) {
  const int page = layout_->page_of(parameter);
  const auto& own = owned_[page];
  const HeldState held(*state_store_, page, Access::kWrite);
  for (const auto& piece : pieces_of(*layout_, page, own.begin, own.begin + own.numel)) {
    if (piece.parameter != parameter) continue;
    for (int i = 0; i < config::optimizer_state_count(config_.optimizer); ++i) {
      const double start = i == 0 ? config_.optimizer.params.initial_accumulator_value : 0.0;
      store_piece(held, i, piece, at::full({piece.numel}, start, at::kFloat));
    }
  }
}

void ModelState::allocate() {
  const auto& pages = layout_->pages();
  paging::PagerOptions options;
  const std::int64_t element = element_bytes(compute_dtype_);
  options.max_live_bytes = saturating_mul(config_.zero.max_live_numel, element);
  options.prefetch_bytes = saturating_mul(config_.zero.prefetch_bucket_numel, element);
  options.max_reuse_distance_bytes = saturating_mul(config_.zero.max_reuse_distance_numel, element);
  options.host = parameter_host(config_, device_);
  std::vector<bool> paged;
  std::int64_t whole_bytes = 0;
  const double share = formula::offloaded_share(config_);
  offloaded_ = formula::offloaded_pages(*layout_, share);
  for (const auto& page : pages) {
    if (!page.trainable && page.group >= 0 && share >= 1.0)
      offloaded_[page.index] = true;  // in case it will be trained
  }
  StateShape shape;
  shape.offloaded = offloaded_;
  shape.states = config::optimizer_state_count(config_.optimizer);
  shape.dtype = config_.state_dtype;
  for (std::size_t i = 0; i < shape.squares.size(); ++i) {
    shape.squares[i] = optim::is_sum_of_squares(config_.optimizer.kind, static_cast<int>(i));
  }
  for (const auto& page : pages) {
    paged.push_back(to_be_paged(page));
    if (!paged.back()) whole_bytes += page.padded_bytes();
    const auto [numel, blocks] = state_size(page.index);
    shape.numel.push_back(page.trainable ? numel : 0);
    shape.blocks.push_back(blocks);
    shape.masters.push_back(has_masters(page.index));
  }
  options.coded = config_.zero.quantized_weights          ? paging::CodedPages::kAll
                  : config_.zero.quantized_frozen_weights ? paging::CodedPages::kFrozen
                                                          : paging::CodedPages::kNone;
  options.disk = parameter_disk_ = make_parameter_disk(*layout_, config_, communicator_->job().rank(), ledger_);
  pager_ = std::make_unique<paging::Pager>(layout_, paged, communicator_, device_, ledger_, options);
  pager_->on_write_back([this](int page) { announce_user_write(page); },
                        [this](int page, std::byte* shard) { follow_user_writes(page, shard); });

  state_store_ = make_optimizer_state_store(shape, *layout_, config_, communicator_, device_, ledger_);
  whole_.resize(pages.size(), nullptr);
  owned_.resize(pages.size());
  for (const auto& page : pages) place_owned(page.index);
  allocate_whole(whole_bytes);
}

/// At world size 1 the shard is the page: nothing to gather, unless it is on the host or a drive.
bool ModelState::to_be_paged(const layout::Page& page) const {
  return sharding_.shard_parameters && !page.persistent &&
         (communicator_->size() > 1 || parameter_host(config_, device_));
}

/// Sets the range of a page that this rank updates, and its device.
void ModelState::place_owned(int page) {
  auto& own = owned_[page];
  const auto& spec = layout_->pages()[page];
  own.begin = sharding_.shard_optimizer ? communicator_->rank() * spec.shard_numel : 0;
  own.numel = sharding_.shard_optimizer ? spec.shard_numel : spec.padded_numel;
  own.device = pager_->paged(page) ? pager_->shard_device() : device_;
}

/// Allocates memory for the pages from `first_page` on, separate from that of the others.
void ModelState::allocate_added(int first_page) {
  const auto& pages = layout_->pages();
  std::vector<bool> paged;
  std::int64_t whole_bytes = 0;
  for (const auto& page : pages) {
    paged.push_back(page.index < first_page ? pager_->paged(page.index) : to_be_paged(page));
    if (page.index >= first_page && !paged.back()) whole_bytes += page.padded_bytes();
  }
  pager_->add_pages(paged);
  offloaded_.resize(pages.size(), formula::offloaded_share(config_) >= 1.0);
  whole_.resize(pages.size(), nullptr);
  owned_.resize(pages.size());
  auto memory = communicator_->allocate(std::max<std::int64_t>(whole_bytes, 1), "parameters");
  std::byte* next = memory->data();
  added_whole_.push_back({first_page, std::move(memory), LedgerEntry(ledger_, MemoryKind::kParameters, whole_bytes)});
  for (auto page = static_cast<std::size_t>(first_page); page < pages.size(); ++page) {
    const int index = static_cast<int>(page);
    place_owned(index);
    if (!paged[page]) whole_[page] = std::exchange(next, next + pages[page].padded_bytes());
    owned_[page].parameter =
        paged[page] ? pager_->shard(index) : whole_[page] + owned_[page].begin * pages[page].element_bytes;
    const auto [numel, blocks] = state_size(index);
    state_store_->add(index, {pages[page].trainable ? numel : 0, blocks, offloaded_[page], has_masters(index)});
  }
}

/// Allocates memory for unsharded pages, and places every owned range.
void ModelState::allocate_whole(std::int64_t bytes) {
  whole_memory_ = communicator_->allocate(std::max<std::int64_t>(bytes, 1), "parameters");
  whole_entry_ = LedgerEntry(ledger_, MemoryKind::kParameters, bytes);
  std::byte* whole = whole_memory_->data();
  for (const auto& page : layout_->pages()) {
    auto& own = owned_[page.index];
    if (pager_->paged(page.index)) {
      own.parameter = pager_->shard(page.index);
    } else if (!is_added(page.index)) {
      whole_[page.index] = std::exchange(whole, whole + page.padded_bytes());
      own.parameter = whole_[page.index] + own.begin * page.element_bytes;
    }
  }
}

/// Objects that parameters need: their memory, and the communicator if it owns mappings of it.
std::shared_ptr<void> ModelState::whole_owner(int page) const {
  using Kept = std::pair<std::shared_ptr<comm::Communicator>, std::shared_ptr<comm::Memory>>;
  auto memory = whole_memory_;
  for (const auto& added : added_whole_) {
    if (page >= added.first_page) memory = added.memory;
  }
  return std::make_shared<Kept>(communicator_->owns_memory() ? communicator_ : nullptr, std::move(memory));
}

void ModelState::keep_parameters_only() {
  pager_->end_engine();
  state_store_.reset();
}

void ModelState::unload_parameters(memory::MemoryPlace host) {
  pager_->unload(host);
  std::int64_t bytes = 0;
  for (const auto& page : layout_->pages()) {
    if (pager_->paged(page.index) || is_added(page.index)) continue;
    bytes += page.padded_bytes();
    for (const auto& place : page.placements) {
      auto* storage = storages_[place.parameter].unsafeGetStorageImpl();
      paging::release_storage(storage, fmt::format("parameter '{}' was moved to the host by offload_states(); call "
                                                   "reload_states() before it is used",
                                                   layout_->parameters()[place.parameter].name));
      paging::link_of(storage)->memory.reset();
    }
  }
  unloaded_ = std::make_unique<memory::DeviceBuffer>(bytes, host, ledger_, MemoryKind::kParameters);
  memory::copy_bytes(unloaded_->data(), host.device, whole_memory_->data(), device_, bytes);
  whole_memory_.reset();
  whole_entry_ = LedgerEntry();
}

void ModelState::reload_parameters() {
  pager_->reload();
  allocate_whole(unloaded_->bytes());
  memory::copy_bytes(whole_memory_->data(), device_, unloaded_->data(), c10::kCPU, unloaded_->bytes());
  unloaded_.reset();
  for (const auto& page : layout_->pages()) {
    if (pager_->paged(page.index) || is_added(page.index)) continue;
    for (const auto& place : page.placements) {
      auto* storage = storages_[place.parameter].unsafeGetStorageImpl();
      paging::link_of(storage)->memory = whole_owner(page.index);
      paging::fill_storage(storage, whole_[page.index] + place.offset * page.element_bytes);
    }
  }
}
}  // namespace zeropage::engine
