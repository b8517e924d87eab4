/// \file
/// Second shards of pages, divided over the few ranks that are near each other (zero_hpz_partition_size): a page that
/// was gathered from all ranks once is gathered again from these, until its values change.
///
/// Each rank cuts its part out of the frame that it has gathered, so no bytes are sent for it. Which pages are valid
/// follows from gathers and changes that all ranks make together, so all ranks choose the same way.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <memory>
#include <vector>

#include <c10/core/Device.h>

#include "zeropage/base/ledger.h"
#include "zeropage/comm/communicator.h"

namespace zeropage::paging {

class SecondShards {
 public:
  SecondShards(std::shared_ptr<comm::Communicator> communicator, c10::Device device, std::shared_ptr<Ledger> ledger);

  /// Memory for the pages that came since the last call; frame_bytes: of each of those, a multiple of the number of
  /// nearby ranks; 0 for pages that get none. Collective.
  void add(const std::vector<std::int64_t>& frame_bytes);

  /// Whether `page` can be gathered from nearby ranks.
  bool has(int page) const { return pages_[page].valid; }

  /// Starts to fill `frame`. Errors: those of Communicator::all_gather.
  comm::WorkPtr gather(int page, std::byte* frame, comm::Tag tag);

  /// Takes this rank's part out of `frame`, in the order of the current stream. Cost: a copy of that part.
  void keep(int page, const std::byte* frame);

  /// The values of `page` have changed.
  void invalidate(int page) { pages_[page].valid = false; }

  /// Gives the memory back, and takes it again. Collective. Between them there are no second shards.
  void unload();
  void reload();

 private:
  struct Page {
    std::int64_t begin = 0;  ///< in the memory of its block
    std::int64_t bytes = 0;  ///< of this rank's part
    int block = 0;
    bool valid = false;
  };
  /// Of the pages of one call of `add`.
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
