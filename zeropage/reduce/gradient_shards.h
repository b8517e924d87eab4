/// \file
/// Memory of this rank's shards of summed gradients, at stages 2 and 3. A page that keeps its gradients
/// (ReducePolicy::keep) and one whose shard is on the drive have none.
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
  /// `communicator` and `policy` outlive this. `allocate` gets the memory.
  GradientShards(std::shared_ptr<const layout::Layout> layout, comm::Communicator& communicator, c10::Device device,
                 std::shared_ptr<Ledger> ledger, const ReducePolicy& policy);

  /// Collective. Memory for the shards of those `pages` that are offloaded, or of those that are not. Errors: as
  /// memory::DeviceBuffer, and as Communicator::allocate.
  void allocate(const std::vector<int>& pages, bool offloaded);

  /// A page that is trained from now on, in memory of its own.
  void add(int page);

  /// Frees the shards that are on the device; `allocate` makes them again. Collective.
  void free_on_device();

  /// The page's shard [shard_numel, ReducePolicy::sum_dtype]; null when it has no memory here.
  std::byte* data(int page) const { return data_[static_cast<std::size_t>(page)]; }

  /// Whether all ranks have this shard at the same place of memory that they share.
  bool is_shared(int page) const;

 private:
  /// Where peers can read each other's shards it is the communicator's memory.
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
