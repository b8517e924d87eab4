/// \file
/// Second shards of pages, divided over a few nearby ranks (zero_hpz_partition_size): a page that was gathered from all
/// ranks once is then gathered from these, until its values change.
///
/// Each rank copies its part from the frame that it has gathered, so no bytes are sent for it. Gathers and changes that
/// all ranks make together determine which pages are valid, so all ranks make the same choice.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <memory>
#include <vector>

#include <c10/core/Device.h>

#include "zeropage/base/ledger.h"
#include "zeropage/comm/communicator.h"
#include "zeropage/paging/stream_order.h"

namespace zeropage::paging {

class SecondShards {
 public:
  SecondShards(std::shared_ptr<comm::Communicator> communicator, c10::Device device, std::shared_ptr<Ledger> ledger);

  /// Allocates memory for the pages added since the last call; frame_bytes: of each of them, a multiple of the number
  /// of nearby ranks; 0 for pages without second shards. Collective.
  void add(const std::vector<std::int64_t>& frame_bytes);

  /// Whether `page` can be gathered from nearby ranks.
  bool has(int page) const { return pages_[page].valid; }

  /// Starts to fill `frame`. Call `gathered` when the work was waited for. Errors: those of Communicator::all_gather.
  comm::WorkPtr gather(int page, std::byte* frame, comm::Tag tag);
  void gathered(int page) { pages_[page].order.enter(device_); }

  /// Copies this rank's part from `frame`, in the order of the current stream. Cost: a copy of that part.
  void keep(int page, const std::byte* frame);

  /// Call when the values of `page` have changed.
  void invalidate(int page) { pages_[page].valid = false; }

  /// Frees the memory, and allocates it again. Collective. In between there are no second shards.
  void unload();
  void reload();

 private:
  struct Page {
    std::int64_t begin = 0;  ///< offset in the memory of its block
    std::int64_t bytes = 0;  ///< of this rank's part
    int block = 0;
    bool valid = false;
    StreamOrder order = {};  ///< of the part's writers and readers
  };
  /// The memory of the pages of one call of `add`.
  struct Block {
    std::int64_t bytes = 0;
    std::unique_ptr<comm::Memory> memory = nullptr;
    LedgerEntry entry = {};
  };

  void allocate(Block& block);
  std::byte* part(const Page& page) const { return blocks_[page.block].memory->data() + page.begin; }

  std::shared_ptr<comm::Communicator> communicator_;
  c10::Device device_;
  std::shared_ptr<Ledger> ledger_;
  std::vector<Page> pages_;
  std::vector<Block> blocks_;
};

}  // namespace zeropage::paging
