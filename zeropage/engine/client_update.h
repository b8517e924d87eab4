/// \file
/// Updates by an optimizer that the program brings. Per update and rank it is called once, with everything that the
/// rank updates:
///
///   1. Read: the fp32 masters of all trained pages are copied, one page after the other, from wherever they live.
///      Gradients are scaled; those that lie in memory as fp32 are scaled in place, others are copied.
///   2. Call: the program's function changes the copies.
///   3. Agree: ranks tell each other whether the function has ended. If it failed anywhere nothing has changed on any
///      rank, and every rank throws.
///   4. Write: the engine's pass over the pages puts the copies in the place of the masters, rounds parameters, and
///      publishes them.
///
/// That is exact for optimizers that treat every element alike. Memory from step 1 to 4: 4 bytes per element that this
/// rank updates, and 4 more where gradients are not fp32 in memory. The copies are what makes step 3 possible.
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
  std::int64_t offset = 0;  ///< first element within the parameter, as it lies in memory
  std::int64_t numel = 0;
};

/// One of them in an update.
struct ClientSegment {
  int parameter = 0;
  at::Tensor values;  ///< [numel], fp32; to be changed in place
  at::Tensor
      gradient;  ///< [numel], fp32, unscaled and clipped; may be overwritten. Undefined: no rank has a gradient for it
};

/// Updates the segments, which are all that this rank has of the trained parameters. They are good for this call only.
/// Whatever it throws is thrown on this rank, and a PeerError on the others.
using ClientUpdate = std::function<void(const std::vector<ClientSegment>& segments)>;

}  // namespace zeropage::engine
