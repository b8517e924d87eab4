/// \file
/// How an engine's tensors look in a checkpoint: types, extents, and the names of the optimizer's state. Saving and
/// loading share it.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "zeropage/checkpoint/tensor_info.h"
#include "zeropage/engine/checkpoint.h"

namespace zeropage::engine {

/// The type of a tensor of a checkpoint; its manifest has been checked, so there is one.
at::ScalarType type_of(const checkpoint::TensorInfo& info);

/// The dimensions as they lie in memory, for a parameter that is transposed or channels-last; empty for others.
std::vector<std::int64_t> memory_order(const at::Tensor& tensor);

/// The extents in memory order.
std::vector<std::int64_t> stored_shape(const at::Tensor& tensor);

/// The arrays of a trained page by the names they have in checkpoints, where all are fp32: first the master, where
/// there is one.
std::vector<std::pair<std::string, int>> state_arrays(const CheckpointedState& state, int page);

/// The type of a parameter in its page.
at::ScalarType page_type(const CheckpointedState& state, const layout::Page& page, int parameter);

}  // namespace zeropage::engine
