/// \file
/// Optimizer states in fewer than 32 bits. Their precise values are not stored elsewhere, so they are rounded
/// stochastically: a second moment that grows by a thousandth of itself per step would never move if it were rounded to
/// nearest.
///
///   bf16   2 bytes per element
///   int8   1 byte per element, and 1 byte for each block of kPackedBlockNumel elements: the exponent that the block
///          shares. An element is spaced like a float, as in the dynamic quantization of 8-bit optimizers (Dettmers et
///          al., 2022): 3 bits of mantissa, a sign, and 4 bits of exponent below the block's; 5 bits for sums of
///          squares, which have no sign. Even steps would round the small second moments of a block to 0, and their
///          parameters would jump.
///
/// The exponent is the smallest with which no element is above the largest code, so a block that is unpacked and packed
/// again does not change. Sums of squares that are not 0 are never rounded to 0.
#pragma once

#include <cstdint>

#include "zeropage/config/config.h"

namespace zeropage::optim {

inline constexpr std::int64_t kPackedBlockNumel = config::kStateBlockNumel;

/// A state of elements that follow each other: the first one begins a block.
struct PackedState {
  void* data = nullptr;
  std::uint8_t* exponents = nullptr;  ///< int8: one per block

  /// The state from element `offset` on, a multiple of kPackedBlockNumel with int8.
  PackedState from(std::int64_t offset, config::StateDtype dtype) const;
};

/// Whether the state with this index has sums of squares, which are not negative.
bool is_sum_of_squares(config::OptimizerKind kind, int index);

/// wide[0..numel) = the state. Exact. Cost: one pass. Errors: none; the type is not fp32.
void unpack(const PackedState& state, config::StateDtype dtype, bool squares, float* wide, std::int64_t numel);

/// The state = wide[0..numel), rounded stochastically so that the mean is right, by a hash of `key` and of the
/// element's index `first` + i. With int8 values from 2^126 on become infinite or NaN, and values below 2^-126 zero.
/// Cost: one pass.
void pack(const float* wide, const PackedState& state, config::StateDtype dtype, bool squares, std::int64_t numel,
          std::uint64_t key, std::int64_t first);

}  // namespace zeropage::optim
