/// \file
/// Whole pieces of a page's state in fp32, converted from the type in which they are kept.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <ATen/ops/empty.h>

#include "zeropage/engine/optimizer_state_store.h"

namespace zeropage::engine {

/// A piece of an array, in a new tensor where the array is.
inline at::Tensor load_piece(const HeldState& held, int index, const StatePiece& piece) {
  const auto& arrays = held.arrays();
  if (arrays.is_wide(index)) {
    return memory::flat_view(arrays.array(index) + piece.offset, piece.numel, at::kFloat, held.device()).clone();
  }
  const auto values = at::empty({piece.numel}, at::TensorOptions().dtype(at::kFloat));
  held.read(index, piece, 0, values.mutable_data_ptr<float>(), piece.numel);
  return values;
}

/// Replaces it by `values` [piece.numel], of any type and from any device. Packed states are rounded as by
/// HeldState::write, with key 0.
inline void store_piece(const HeldState& held, int index, const StatePiece& piece, const at::Tensor& values) {
  const auto& arrays = held.arrays();
  if (arrays.is_wide(index)) {
    memory::flat_view(arrays.array(index) + piece.offset, piece.numel, at::kFloat, held.device()).copy_(values);
  } else {
    held.write(index, piece, values.to(c10::kCPU, at::kFloat).contiguous().const_data_ptr<float>(), /*key=*/0);
  }
}

}  // namespace zeropage::engine
