/// \file
/// A parameter's values as a one-dimensional array in the parameter's memory order, which is their order in pages.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <ATen/ops/empty_strided.h>

#include "zeropage/engine/model_state.h"

namespace zeropage::engine {

/// A view of all elements; also works for an absent parameter.
inline at::Tensor flat_in_memory(const at::Tensor& tensor) {
  return tensor.detach().as_strided({tensor.numel()}, {1}, tensor.storage_offset());
}

/// A new tensor, never a view.
inline at::Tensor fp32_copy(const at::Tensor& values, c10::Device device) {
  return values.to(at::TensorOptions().device(device).dtype(at::kFloat), /*non_blocking=*/false, /*copy=*/true);
}

/// `value` [parameter.shape] in fp32, flat in the order of the parameter's elements.
inline at::Tensor flat_value(const at::Tensor& parameter, const at::Tensor& value, c10::Device device) {
  const auto options = at::TensorOptions().device(device).dtype(at::kFloat);
  const auto laid_out = at::empty_strided(parameter.sizes(), parameter.strides(), options);
  laid_out.copy_(value);
  return flat_in_memory(laid_out);
}

/// The position, in this rank's range of the page, of the elements of a parameter that it updates; numel 0: none.
inline StatePiece own_piece(const ModelState& state, int parameter) {
  const int page = state.layout()->page_of(parameter);
  const auto& own = state.owned(page);
  for (const auto& piece : pieces_of(*state.layout(), page, own.begin, own.begin + own.numel)) {
    if (piece.parameter == parameter) return piece;
  }
  return {parameter};
}

}  // namespace zeropage::engine
