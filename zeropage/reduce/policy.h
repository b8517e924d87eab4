/// \file
/// The method and the types of a reducer.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <memory>
#include <optional>
#include <vector>

#include "zeropage/io/page_cache.h"
#include "zeropage/layout/layout.h"
#include "zeropage/memory/device_buffer.h"

namespace zeropage::reduce {

struct ReduceTypes {
  DType accumulation_dtype = DType::kFloat32;
  DType frame_dtype = DType::kFloat32;
};

struct ReducePolicy {
  bool sharded = false;        ///< stages 2 and 3: reduce in every backward, keep a shard
  bool whole_result = false;   ///< stage 0: every rank needs the sum of the whole page
  bool reduce_scatter = true;  ///< false: all-reduce, then slice
  bool keep = false;   ///< sharded, one rank: gradients of pages that stay on the device are left as they were made
  bool coded = false;  ///< gradients are sent as coded blocks (coded_reductions.h): the gaps between them must be zeros
  bool overlap = true;     ///< false: no reduction runs overlapped with a backward
  float pre_scale = 1.0f;  ///< multiplied into every gradient before it is summed (prescale_gradients)
  DType accumulation_dtype = DType::kFloat32;  ///< of whole frames, or of shards, in which gradients add up
  DType frame_dtype = DType::kFloat32;         ///< of frames in reductions (communication dtype)
  bool fp32_sums = false;                      ///< gradients of fp32 pages add up in fp32 regardless of the type above,
  bool fp32_sent = false;                      ///< and are reduced in fp32
  std::optional<ReduceTypes> adding = {};      ///< these two types if whole gradients that were only stored do add up
  std::vector<bool> offloaded;                 ///< per page: whether its shard is in memory of `host`; empty: none is
  memory::MemoryPlace host = c10::Device(c10::kCPU);
  bool squares = true;               ///< false: they are not needed, and none are summed
  bool squares_before_copy = false;  ///< a first sum is squared on its device before it is copied to `host`

  /// The drive for the shards of its pages; null: none.
  std::shared_ptr<io::PageCache> disk = nullptr;

  bool on_disk(int page) const { return disk != nullptr && disk->has(page); }

  /// Whether gradients of this page can stay in autograd's tensors.
  bool may_keep(int page) const { return keep && !offloaded[static_cast<std::size_t>(page)] && !on_disk(page); }

  /// The type of a frame while it is reduced.
  DType sent_dtype(const layout::Page& page) const {
    return fp32_sent && page.dtype == DType::kFloat32 ? DType::kFloat32 : frame_dtype;
  }

  /// The type of a shard in which gradients add up.
  DType sum_dtype(const layout::Page& page) const {
    return fp32_sums && page.dtype == DType::kFloat32 ? DType::kFloat32 : accumulation_dtype;
  }

  /// The type of a frame while it receives gradients.
  DType dtype_of_frame(const layout::Page& page) const {
    if (sharded) return sent_dtype(page);
    return page.dtype == DType::kFloat32 ? DType::kFloat32 : accumulation_dtype;
  }

  std::int64_t frame_bytes(const layout::Page& page) const {
    return page.padded_numel * element_bytes(dtype_of_frame(page));
  }
};

}  // namespace zeropage::reduce
