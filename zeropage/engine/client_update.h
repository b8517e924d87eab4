/// \file
/// Updates by the program's own optimizer. It is called once per update and rank, with everything that the rank
/// updates:
///
///   1. Read: the fp32 masters of all trained pages are copied, one page after the other, from their stores. Gradients
///      are scaled; those in memory as fp32 are scaled in place, others are copied.
///   2. Call: the program's function changes the copies.
///   3. Agree: ranks exchange whether the function succeeded. If it failed on any rank, nothing has changed on any
///      rank, and every rank throws.
///   4. Write: the engine's pass over the pages writes the copies to the masters, rounds parameters, and publishes
///      them.
///
/// This is exact for optimizers that treat all elements in the same way. Memory from step 1 to 4: 4 bytes per element
/// that this rank updates, and 4 more if gradients are not fp32 in memory. Step 3 needs the copies.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <vector>

namespace zeropage::engine {

/// The elements of a parameter that this rank updates.
struct OwnedSegment {
  int parameter = 0;
  std::int64_t offset = 0;  ///< first element within the parameter, in memory order
  std::int64_t numel = 0;
};

/// One of them in an update.
struct ClientSegment {
  int parameter = 0;
  at::Tensor values;  ///< [numel], fp32; to be changed in place
  at::Tensor
      gradient;  ///< [numel], fp32, unscaled and clipped; may be overwritten. Undefined: no rank has a gradient for it
};

/// Updates the segments, which are this rank's part of all trained parameters. They are valid during this call only. An
/// exception is thrown on this rank, and a PeerError on the others.
using ClientUpdate = std::function<void(const std::vector<ClientSegment>& segments)>;

}  // namespace zeropage::engine
