// Pages that are gathered in 8 bits.
//
//   1. Each rank codes its shard, the coded shards are gathered, and every rank decodes all of them, including its own,
//      into its frame. So frames have the same values everywhere. If a rank copies its peers' shards from their memory,
//      it rounds them in the copy, to the same values.
//   2. Writing a parameter, or opening a scope for it, needs exact values: the frame is then gathered without rounding.
//      It is dropped when the scope has ended, or when the writes have been stored in the shard, so that the values
//      read by operators do not depend on scopes.
//   3. Second shards (second_shards.h) have the values that operators read.
//   4. An operator may write one parameter of a page and read another one. The frame then stays. Only its
//      changed values are written to the shard.
//   5. When the engine has ended pages are gathered as they are.
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/where.h>

#include <utility>

#include "zeropage/memory/block_codes.h"
#include "zeropage/paging/pager.h"

namespace zeropage::paging {
namespace {

optim::CodedParts shards_of(const layout::Page& page, std::int64_t count) {
  return {kWireCode, page.dtype, page.shard_numel, count};
}

}  // namespace

bool Pager::is_coded(int page) const {
  if (options_.coded == CodedPages::kNone || communicator_->size() == 1) return false;
  const auto& spec = layout_->pages()[page];
  const bool chosen = options_.coded == CodedPages::kAll || !spec.trainable;
  return chosen && pages_[page].paged && optim::is_codable(spec.dtype);
}

void Pager::start_coded_gather(int page, const std::byte* shard) {
  auto& state = pages_[page];
  const auto own = shards_of(layout_->pages()[page], 1);
  if (!wires_) wires_ = make_private_frame_pool(device_, INT64_MAX, ledger_, MemoryKind::kBuffers);
  state.wire = wires_->acquire(communicator_->size() * own.part_bytes());
  std::byte* const coded = state.wire + communicator_->rank() * own.part_bytes();
  memory::encode_blocks(own, shard, coded, device_);
  state.gather = communicator_->all_gather(coded, state.wire, own.part_bytes(), comm::Tag{state.label, page});
}

void Pager::decode(int page) {
  auto& state = pages_[page];
  state.order.enter(device_);
  memory::decode_blocks(shards_of(layout_->pages()[page], communicator_->size()), state.wire, state.frame, device_);
  release_wire(page);
}

void Pager::release_wire(int page) {
  if (std::byte* wire = std::exchange(pages_[page].wire, nullptr))
    wires_->release(wire, event_after_current_work(device_));
}

/// Before exact values are gathered.
void Pager::drop_rounded(int page) {
  auto& state = pages_[page];
  if (state.state == State::kArriving && state.rounded && state.gather) finish_gather(page);
  if (state.state == State::kResident && state.rounded && state.pins == 0) evict(page);
}

/// Called when exact values are no longer needed.
void Pager::drop_exact(int page) {
  const auto& state = pages_[page];
  if (!is_coded(page) || state.rounded || state.dirty || state.pins > 0 || state.state != State::kResident) return;
  evict(page);
}

/// From now on all frames have exact values: nobody trains with the rounded ones any more, and whoever copies a
/// parameter wants to keep it. A frame that the program has written stays until it is written to the shard.
void Pager::stop_coding() {
  for (std::size_t i = 0; i < pages_.size(); ++i) {
    const int page = static_cast<int>(i);
    if (!is_coded(page)) continue;
    if (second_) second_->invalidate(page);
    if (!pages_[page].dirty) drop_rounded(page);
  }
  options_.coded = CodedPages::kNone;
}

/// Writes the first `numel` elements of the own shard from a frame with rounded values: elements that are unchanged
/// since the gather stay exact.
void Pager::keep_unwritten(int page, std::byte* shard, std::int64_t numel) const {
  const auto& spec = layout_->pages()[page];
  const auto place = shard_device();
  const auto type = scalar_type_of(spec.dtype);
  const auto bits = spec.element_bytes == 4 ? at::kInt : at::kShort;
  const optim::CodedParts own{kWireCode, spec.dtype, numel, 1};
  const at::Tensor seen =
      memory::flat_view(pages_[page].frame + communicator_->rank() * spec.shard_bytes(), numel, type, device_)
          .to(place);
  const at::Tensor coded = at::empty({own.part_bytes()}, seen.options().dtype(at::kByte));
  const at::Tensor gathered = at::empty_like(seen);
  auto* const wire = static_cast<std::byte*>(coded.mutable_data_ptr());
  memory::encode_blocks(own, shard, wire, place);
  memory::decode_blocks(own, wire, gathered.mutable_data_ptr(), place);
  at::Tensor exact = memory::flat_view(shard, numel, type, place);
  exact.copy_(at::where(seen.view(bits).eq(gathered.view(bits)), exact, seen));
}

}  // namespace zeropage::paging
