#include "zeropage/reduce/gradient_frames.h"

#include <algorithm>
#include <utility>

#include "zeropage/base/checked.h"

namespace zeropage::reduce {
namespace {

constexpr std::int64_t kMemoryPageBytes = 4096;

}  // namespace

GradientFrames::GradientFrames(std::shared_ptr<const layout::Layout> layout, const std::vector<int>& pages,
                               comm::Communicator& communicator, c10::Device device, std::shared_ptr<Ledger> ledger,
                               const ReducePolicy& policy)
    : layout_(std::move(layout)),
      communicator_(communicator),
      device_(device),
      ledger_(std::move(ledger)),
      policy_(policy),
      homes_(layout_->pages().size()) {
  allocate_homes(pages);
  make_pool();
}

std::int64_t GradientFrames::bytes(int page) const { return policy_.frame_bytes(layout_->pages()[page]); }

void GradientFrames::make_pool() {
  std::int64_t total_bytes = 0;
  for (const auto& page : layout_->pages()) {
    if (page.group < 0) continue;  // otherwise it may be trained later
    total_bytes += round_up(bytes(page.index), kMemoryPageBytes);
  }
  // Twice: a page may get gradients again while its first frame is being reduced. Only touched parts need memory.
  pool_ = communicator_.one_sided() ? paging::make_shared_frame_pool(communicator_, 2 * total_bytes + kMemoryPageBytes,
                                                                     ledger_, MemoryKind::kFrames)
                                    : paging::make_private_frame_pool(device_, INT64_MAX, ledger_, MemoryKind::kFrames);
}

void GradientFrames::allocate_homes(const std::vector<int>& pages) {
  if (policy_.sharded) return;
  std::int64_t total_bytes = 0;
  for (const int page : pages) total_bytes += round_up(bytes(page), kMemoryPageBytes);
  memory_ = communicator_.allocate(std::max<std::int64_t>(total_bytes, 1), "gradients");
  entry_ = LedgerEntry(ledger_, MemoryKind::kGradients, total_bytes);
  std::int64_t offset = 0;
  for (const int page : pages) {
    homes_[page] = memory_->data() + offset;
    offset += round_up(bytes(page), kMemoryPageBytes);
  }
}

void GradientFrames::free_homes() {
  memory_.reset();
  entry_ = LedgerEntry();
  added_.clear();
}

std::byte* GradientFrames::acquire(int page) { return pool_->acquire(bytes(page)); }

void GradientFrames::add(int page) {
  homes_.resize(layout_->pages().size());
  if (policy_.sharded) return;
  auto memory = communicator_.allocate(bytes(page), "gradients");
  homes_[page] = memory->data();
  added_.push_back({std::move(memory), LedgerEntry(ledger_, MemoryKind::kGradients, bytes(page))});
}

void GradientFrames::grow() {
  homes_.resize(layout_->pages().size());
  make_pool();
}

}  // namespace zeropage::reduce
