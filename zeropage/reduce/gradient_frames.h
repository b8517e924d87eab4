/// \file
/// Memory of the frames that receive gradients, of a whole page each:
///
///   - A whole page (stages 0 and 1) has its own frame, `home`, in which gradients add up.
///   - Other frames are borrowed from a pool: those of sharded pages, and those of gradients that arrive after the
///     page's reduction has started.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <memory>
#include <optional>
#include <vector>

#include <c10/core/Event.h>

#include "zeropage/comm/communicator.h"
#include "zeropage/layout/layout.h"
#include "zeropage/paging/frame_pool.h"
#include "zeropage/reduce/policy.h"

namespace zeropage::reduce {

class GradientFrames {
 public:
  /// Collective. `pages`: those that are trained. `communicator` and `policy` must outlive this object. Errors: as
  /// memory::DeviceBuffer, and as Communicator::allocate.
  GradientFrames(std::shared_ptr<const layout::Layout> layout, const std::vector<int>& pages,
                 comm::Communicator& communicator, c10::Device device, std::shared_ptr<Ledger> ledger,
                 const ReducePolicy& policy);

  /// The page's own frame: [padded_numel, frame type]; null when it has none.
  std::byte* home(int page) const { return homes_[static_cast<std::size_t>(page)]; }

  /// A frame of the pool, contents undefined, for the current stream: [padded_numel, frame type].
  std::byte* acquire(int page);

  /// Returns it; `used`: see FramePool::release.
  void release(std::byte* frame, std::optional<c10::Event> used = {}) { pool_->release(frame, std::move(used)); }

  /// Adds a page that is trained from now on. Collective.
  void add(int page);

  /// Enlarges the pool for new pages of the layout. No frame of the pool may be in use. Collective.
  void grow();

  /// Frees the pages' own frames; `allocate` allocates them again. Collective.
  void free_homes();
  void allocate_homes(const std::vector<int>& pages);

  /// Returns unused frames of the pool to the system.
  void trim() { pool_->trim(); }

 private:
  struct AddedFrame {
    std::unique_ptr<comm::Memory> memory;
    LedgerEntry entry;
  };

  std::int64_t bytes(int page) const;
  void make_pool();

  std::shared_ptr<const layout::Layout> layout_;
  comm::Communicator& communicator_;
  c10::Device device_;
  std::shared_ptr<Ledger> ledger_;
  const ReducePolicy& policy_;
  std::vector<std::byte*> homes_;         // per page
  std::unique_ptr<comm::Memory> memory_;  // of the pages' own frames
  LedgerEntry entry_;
  std::vector<AddedFrame> added_;  // for pages that were added later
  std::unique_ptr<paging::FramePool> pool_;
};

}  // namespace zeropage::reduce
