/// \file
/// The form of an engine's tensors in a checkpoint: types, extents, and the names of the optimizer's state. Shared by
/// saving and loading.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "zeropage/checkpoint/tensor_info.h"
#include "zeropage/engine/checkpoint.h"

namespace zeropage::engine {

/// The type of a tensor of a checkpoint; its manifest has been checked, so the type is known.
at::ScalarType type_of(const checkpoint::TensorInfo& info);

/// The dimensions in memory order, for a parameter that is transposed or channels-last; empty for others.
std::vector<std::int64_t> memory_order(const at::Tensor& tensor);

/// The extents in memory order.
std::vector<std::int64_t> stored_shape(const at::Tensor& tensor);

/// The arrays of a trained page by their names in checkpoints, where all are fp32: first the master, if there is one.
std::vector<std::pair<std::string, int>> state_arrays(const CheckpointedState& state, int page);

/// The type of a parameter in its page.
at::ScalarType page_type(const CheckpointedState& state, const layout::Page& page, int parameter);

}  // namespace zeropage::engine
