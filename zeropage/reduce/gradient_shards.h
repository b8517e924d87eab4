/// \file
/// Memory of this rank's shards of summed gradients, at stages 2 and 3. Pages that keep their gradients
/// (ReducePolicy::keep) and pages with shards on the drive have none.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <map>
#include <memory>
#include <vector>

#include "zeropage/comm/communicator.h"
#include "zeropage/layout/layout.h"
#include "zeropage/memory/device_buffer.h"
#include "zeropage/reduce/policy.h"

namespace zeropage::reduce {

class GradientShards {
 public:
  /// `communicator` and `policy` must outlive this object. `allocate` allocates the memory.
  GradientShards(std::shared_ptr<const layout::Layout> layout, comm::Communicator& communicator, c10::Device device,
                 std::shared_ptr<Ledger> ledger, const ReducePolicy& policy);

  /// Collective. Allocates the shards of those `pages` that are offloaded, or of those that are not. Errors: as
  /// memory::DeviceBuffer, and as Communicator::allocate.
  void allocate(const std::vector<int>& pages, bool offloaded);

  /// Adds a page that is trained from now on, in separate memory.
  void add(int page);

  /// Frees the shards on the device; `allocate` allocates them again. Collective.
  void free_on_device();

  /// The page's shard [shard_numel, ReducePolicy::sum_dtype]; null when it has no memory here.
  std::byte* data(int page) const { return data_[static_cast<std::size_t>(page)]; }

  /// Whether all ranks have this shard at the same offset of memory that they share.
  bool is_shared(int page) const;

 private:
  /// If peers can read each other's shards, it is the communicator's memory.
  struct Block {
    std::unique_ptr<memory::DeviceBuffer> buffer;
    std::unique_ptr<comm::Memory> shared;
    LedgerEntry entry;
    std::byte* data() const { return buffer ? buffer->data() : shared->data(); }
  };

  std::int64_t bytes(int page) const;
  bool peers_read() const;
  memory::MemoryPlace place(bool offloaded) const;

  std::shared_ptr<const layout::Layout> layout_;
  comm::Communicator& communicator_;
  c10::Device device_;
  std::shared_ptr<Ledger> ledger_;
  const ReducePolicy& policy_;
  Block on_device_;
  Block offloaded_;
  std::map<int, std::unique_ptr<memory::DeviceBuffer>> added_;
  std::vector<std::byte*> data_;  // per page
};

}  // namespace zeropage::reduce
