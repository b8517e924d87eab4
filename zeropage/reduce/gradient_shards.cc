#include "zeropage/reduce/gradient_shards.h"

#include <algorithm>
#include <utility>

namespace zeropage::reduce {

GradientShards::GradientShards(std::shared_ptr<const layout::Layout> layout, comm::Communicator& communicator,
                               c10::Device device, std::shared_ptr<Ledger> ledger, const ReducePolicy& policy)
    : layout_(std::move(layout)),
      communicator_(communicator),
      device_(device),
      ledger_(std::move(ledger)),
      policy_(policy),
      data_(layout_->pages().size()) {}

std::int64_t GradientShards::bytes(int page) const {
  if (policy_.on_disk(page) || policy_.may_keep(page)) return 0;
  const auto& spec = layout_->pages()[page];
  return spec.shard_numel * element_bytes(policy_.sum_dtype(spec));
}

bool GradientShards::peers_read() const {
  return communicator_.one_sided() && communicator_.size() > 1 && device_.is_cpu();
}

bool GradientShards::is_shared(int page) const { return peers_read() && !added_.contains(page); }

memory::MemoryPlace GradientShards::place(bool offloaded) const {
  return offloaded ? policy_.host : memory::MemoryPlace(device_);
}

void GradientShards::allocate(const std::vector<int>& pages, bool offloaded) {
  const auto counts = [&](int page) { return policy_.offloaded[page] == offloaded && bytes(page) > 0; };
  std::int64_t total_bytes = 0;
  for (const int page : pages) total_bytes += counts(page) ? bytes(page) : 0;
  Block block;
  if (peers_read()) {
    block.shared = communicator_.allocate(std::max<std::int64_t>(total_bytes, 1), "shards of gradients");
    block.entry = LedgerEntry(ledger_, MemoryKind::kGradients, total_bytes, place(offloaded).tier);
  } else {
    block.buffer =
        std::make_unique<memory::DeviceBuffer>(total_bytes, place(offloaded), ledger_, MemoryKind::kGradients);
  }
  std::int64_t offset = 0;
  for (const int page : pages) {
    if (!counts(page)) continue;
    data_[page] = block.data() + offset;
    offset += bytes(page);
  }
  (offloaded ? offloaded_ : on_device_) = std::move(block);
}

void GradientShards::add(int page) {
  data_.resize(layout_->pages().size());
  if (bytes(page) == 0) return;
  auto shard = std::make_unique<memory::DeviceBuffer>(bytes(page), place(policy_.offloaded[page]), ledger_,
                                                      MemoryKind::kGradients);
  data_[page] = shard->data();
  added_[page] = std::move(shard);
}

void GradientShards::free_on_device() {
  on_device_ = {};
  std::erase_if(added_, [&](const auto& shard) { return !policy_.offloaded[shard.first]; });
}

}  // namespace zeropage::reduce
