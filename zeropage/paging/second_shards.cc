#include "zeropage/paging/second_shards.h"

#include <utility>

#include "zeropage/memory/device_buffer.h"

namespace zeropage::paging {

SecondShards::SecondShards(std::shared_ptr<comm::Communicator> communicator, c10::Device device,
                           std::shared_ptr<Ledger> ledger)
    : communicator_(std::move(communicator)), device_(device), ledger_(std::move(ledger)) {}

void SecondShards::add(const std::vector<std::int64_t>& frame_bytes) {
  Block block;
  for (const std::int64_t bytes : frame_bytes) {
    const std::int64_t part_bytes = bytes / communicator_->nearby_size();
    pages_.push_back({block.bytes, part_bytes, static_cast<int>(blocks_.size())});
    block.bytes += part_bytes;
  }
  allocate(block);
  blocks_.push_back(std::move(block));
}

void SecondShards::allocate(Block& block) {
  if (block.bytes == 0) return;
  block.memory = communicator_->allocate_nearby(block.bytes, "second parameter shards");
  block.entry = LedgerEntry(ledger_, MemoryKind::kParameters, block.bytes, Tier::kDevice);
}

comm::WorkPtr SecondShards::gather(int page, std::byte* frame, comm::Tag tag) {
  Page& from = pages_[page];
  from.order.enter(device_);
  return communicator_->all_gather_nearby(part(from), frame, from.bytes, tag);
}

void SecondShards::keep(int page, const std::byte* frame) {
  Page& to = pages_[page];
  if (to.bytes == 0 || blocks_[to.block].memory == nullptr) return;
  const std::int64_t rank = communicator_->rank() % communicator_->nearby_size();
  to.order.enter(device_);
  memory::start_copy(part(to), device_, frame + rank * to.bytes, device_, to.bytes);
  to.valid = true;
}

void SecondShards::unload() {
  for (Page& page : pages_) page.valid = false;
  for (Block& block : blocks_) {
    block.memory.reset();
    block.entry = LedgerEntry();
  }
}

void SecondShards::reload() {
  for (Block& block : blocks_) allocate(block);
}

}  // namespace zeropage::paging
