/// \file
/// Updates by an optimizer that the program brings. It is given what this rank owns of each parameter as flat fp32 tensors, page by
/// page, and changes them in place; the engine scales the gradients before and rounds and publishes the values after. That is
/// exact for optimizers that treat every element alike.
#pragma once

#include "zeropage/paging/torch_config.h"

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
struct CallerSegment {
  int parameter = 0;
  at::Tensor values;    ///< [numel], fp32: the master itself; to be changed in place, good for this call only
  at::Tensor gradient;  ///< [numel], fp32, unscaled and clipped; may be overwritten
};

/// Updates the segments of one page, which are of one parameter group.
using CallerUpdate = std::function<void(const std::vector<CallerSegment>& segments)>;

}  // namespace zeropage::engine
