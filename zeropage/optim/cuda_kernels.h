/// \file
/// The update kernels. update_kernel: masters and fp32 states; the fast one, compiled for each pair of types.
/// update_rounded_kernel: stochastic rounding of packed states and of 16-bit parameters without masters; it selects
/// their types at run time, and threads of a block share the exponent of an int8 block. Both give the bits of the
/// scalar reference, except for the bits of a NaN, which the processor chooses. Only for update_cuda.cu.
#pragma once

#include <cstddef>
#include <cstdint>

#include "zeropage/base/dtype.h"
#include "zeropage/optim/cuda_launch.h"
#include "zeropage/optim/cuda_values.h"
#include "zeropage/optim/elements.h"
#include "zeropage/optim/packed_code.h"
#include "zeropage/optim/packed_state.h"
#include "zeropage/optim/random_bits.h"

namespace zeropage::optim {

constexpr int kThreads = 256;
constexpr int kPieces = 32;  // arguments of a kernel are limited to 4 KB
constexpr std::int64_t kBlockNumel = kThreads * kRunNumel;
static_assert(kWarpNumel == kPackedBlockNumel, "a warp has a block of an int8 state");

template <typename Rule>
struct Piece {
  float* master = nullptr;         ///< [numel], fp32; null: the parameter is its own
  PackedState states[2] = {};      ///< [numel] each, in Launch::state_dtype, including fp32
  const void* gradient = nullptr;  ///< [numel], Launch::gradient_dtype
  void* parameter = nullptr;       ///< [numel], Launch::parameter_dtype
  std::int64_t numel = 0;
  std::uint64_t rounding_key = 0;
  std::uint64_t index = 0;  ///< index of the first element, for rounding
  Rule rule = {};
};

template <typename Rule>
struct Launch {
  Piece<Rule> pieces[kPieces] = {};
  unsigned first_block[kPieces] = {};
  unsigned aligned = 0;  ///< a bit for each piece: all of its arrays begin at multiples of 16 bytes
  int count = 0;
  DType gradient_dtype = DType::kFloat32;
  DType parameter_dtype = DType::kFloat32;
  config::StateDtype state_dtype = config::StateDtype::kFloat32;
  bool squares[2] = {};  ///< is_sum_of_squares, per state
};
static_assert(sizeof(Launch<AdamRule>) <= 4096 && kPieces <= 32);

/// The elements of a thread.
struct ThreadElements {
  int piece;
  std::int64_t first;  ///< its first element, within the piece
  int left;            ///< remaining elements of the piece from there on, limited to those of the thread; 0: none
  bool whole;          ///< see load_run
};

template <typename Rule>
__device__ ThreadElements place_of_thread(const Launch<Rule>& launch) {
  ThreadElements place{};
  while (place.piece + 1 < launch.count && blockIdx.x >= launch.first_block[place.piece + 1]) ++place.piece;
  const std::int64_t block = blockIdx.x - launch.first_block[place.piece];
  const int in_warp = static_cast<int>(threadIdx.x) % kWarpThreads * kGroupNumel;
  place.first = block * kBlockNumel + threadIdx.x / kWarpThreads * kWarpNumel + in_warp;
  const std::int64_t left = launch.pieces[place.piece].numel - place.first;
  place.left = left <= 0 ? 0 : left < kWarpNumel ? static_cast<int>(left) : kWarpNumel;
  place.whole = place.left > offset_of(kRunNumel - 1) && (launch.aligned >> place.piece & 1U) != 0;
  return place;
}

template <typename Rule, typename Gradient, typename Parameter>
__global__ void __launch_bounds__(kThreads) update_kernel(const __grid_constant__ Launch<Rule> launch) {
  const auto [index, first, left, whole] = place_of_thread(launch);
  if (left == 0) return;
  const Piece<Rule>& piece = launch.pieces[index];
  float masters[kRunNumel] = {};
  float gradients[kRunNumel] = {};
  float states[2][kRunNumel] = {};
  load_run(masters, piece.master, first, left, whole);
  load_wide<Gradient>(gradients, piece.gradient, first, left, whole);
  ZEROPAGE_UNROLL
  for (int s = 0; s < Rule::kStates; ++s) load_run(states[s], piece.states[s].data, first, left, whole);
  for (int k = 0; k < kRunNumel; ++k) {
    masters[k] =
        update_element(piece.rule, masters[k], states[0][k], states[1][k], gradients[k] * piece.rule.gradient_scale);
  }
  store_run(masters, piece.master, first, left, whole);
  ZEROPAGE_UNROLL
  for (int s = 0; s < Rule::kStates; ++s) store_run(states[s], piece.states[s].data, first, left, whole);
  // In fp32 the master is the parameter.
  if constexpr (sizeof(typename Parameter::Element) == 2) {
    store_narrow<Parameter>(masters, piece.parameter, first, left, whole);
  }
}

inline __device__ void load_as(DType dtype, float (&wide)[kRunNumel], const void* data, const ThreadElements& place) {
  if (dtype == DType::kBFloat16) return load_wide<BFloat16>(wide, data, place.first, place.left, place.whole);
  if (dtype == DType::kFloat16) return load_wide<Float16>(wide, data, place.first, place.left, place.whole);
  load_wide<Float32>(wide, data, place.first, place.left, place.whole);
}

inline __device__ void store_at_random(bool bfloat16, const float (&wide)[kRunNumel], void* data,
                                       const ThreadElements& place, std::uint64_t key, std::uint64_t index) {
  std::uint16_t values[kRunNumel];
  for (int k = 0; k < kRunNumel; ++k) {
    const std::uint64_t own = index + static_cast<std::uint64_t>(offset_of(k));
    const std::uint32_t random = random_bits(key_bits(key, own), static_cast<std::uint32_t>(own));
    values[k] = bfloat16 ? bfloat16_at_random(wide[k], random) : float16_at_random(wide[k], random);
  }
  store_run(values, data, place.first, place.left, place.whole);
}

inline __device__ void load_packed(bool squares, float (&wide)[kRunNumel], const PackedState& state,
                                   const ThreadElements& place) {
  std::uint8_t codes[kRunNumel] = {};
  load_run(codes, state.data, place.first, place.left, place.whole);
  const float scale = place.left == 0 ? 0.0F : block_scale(state.exponents[place.first / kPackedBlockNumel]);
  for (int k = 0; k < kRunNumel; ++k) {
    wide[k] = (squares ? SquaresCode::widen(codes[k]) : SignedCode::widen(codes[k])) * scale;
  }
}

/// A warp has a block of the state. All of its threads must call this together.
inline __device__ void store_packed(bool squares, const float (&wide)[kRunNumel], const PackedState& state,
                                    const ThreadElements& place, std::uint64_t key, std::uint64_t index) {
  std::uint32_t largest = 0;
  for (int k = 0; k < kRunNumel; ++k) {
    const std::uint32_t magnitude = offset_of(k) < place.left ? magnitude_bits(wide[k]) : 0;
    largest = magnitude > largest ? magnitude : largest;
  }
  const std::uint8_t exponent = shared_exponent(largest_in_warp(largest));
  if (place.left == 0) return;
  const std::int64_t in_block = place.first % kPackedBlockNumel;
  if (in_block == 0) state.exponents[place.first / kPackedBlockNumel] = exponent;
  const std::uint64_t block_index = index - static_cast<std::uint64_t>(in_block);
  const std::uint32_t block_key = key_bits(key, block_index);
  std::uint8_t codes[kRunNumel];
  for (int k = 0; k < kRunNumel; ++k) {
    const float scaled = wide[k] * inverse_block_scale(exponent);
    const std::uint32_t random = random_bits(
        block_key, static_cast<std::uint32_t>(block_index) + static_cast<std::uint32_t>(in_block + offset_of(k)));
    codes[k] = squares ? SquaresCode::round(scaled, random) : SignedCode::round(scaled, random);
  }
  store_run(codes, state.data, place.first, place.left, place.whole);
}

template <typename Rule>
__device__ void load_states(float (&states)[2][kRunNumel], const Launch<Rule>& launch, const Piece<Rule>& piece,
                            const ThreadElements& place) {
  ZEROPAGE_UNROLL
  for (int s = 0; s < Rule::kStates; ++s) {
    const PackedState& state = piece.states[s];
    if (launch.state_dtype == config::StateDtype::kInt8) {
      load_packed(launch.squares[s], states[s], state, place);
    } else {
      const bool wide = launch.state_dtype == config::StateDtype::kFloat32;
      load_as(wide ? DType::kFloat32 : DType::kBFloat16, states[s], state.data, place);
    }
  }
}

template <typename Rule>
__device__ void store_states(const float (&states)[2][kRunNumel], const Launch<Rule>& launch, const Piece<Rule>& piece,
                             const ThreadElements& place, std::uint64_t index) {
  ZEROPAGE_UNROLL
  for (int s = 0; s < Rule::kStates; ++s) {
    const PackedState& state = piece.states[s];
    const std::uint64_t key = state_rounding_key(piece.rounding_key, static_cast<std::size_t>(s));
    if (launch.state_dtype == config::StateDtype::kInt8) {
      store_packed(launch.squares[s], states[s], state, place, key, index);
    } else if (launch.state_dtype == config::StateDtype::kBFloat16) {
      store_at_random(/*bfloat16=*/true, states[s], state.data, place, key, index);
    } else {
      store_run(states[s], state.data, place.first, place.left, place.whole);
    }
  }
}

/// Threads without an element also run this, because a warp handles a block of an int8 state together.
template <typename Rule>
__global__ void __launch_bounds__(kThreads) update_rounded_kernel(const __grid_constant__ Launch<Rule> launch) {
  const ThreadElements place = place_of_thread(launch);
  const Piece<Rule>& piece = launch.pieces[place.piece];
  const std::uint64_t index = piece.index + static_cast<std::uint64_t>(place.first);  // of the first element
  float states[2][kRunNumel] = {};
  float values[kRunNumel] = {};
  float gradients[kRunNumel] = {};
  const bool has_master = piece.master != nullptr;
  load_states(states, launch, piece, place);
  if (has_master) {
    load_run(values, piece.master, place.first, place.left, place.whole);
  } else {
    load_as(launch.parameter_dtype, values, piece.parameter, place);
  }
  load_as(launch.gradient_dtype, gradients, piece.gradient, place);
  for (int k = 0; k < kRunNumel; ++k) {
    values[k] =
        update_element(piece.rule, values[k], states[0][k], states[1][k], gradients[k] * piece.rule.gradient_scale);
  }
  if (has_master) store_run(values, piece.master, place.first, place.left, place.whole);
  if (!has_master) {
    store_at_random(launch.parameter_dtype == DType::kBFloat16, values, piece.parameter, place, piece.rounding_key,
                    index);
  } else if (launch.parameter_dtype == DType::kBFloat16) {
    store_narrow<BFloat16>(values, piece.parameter, place.first, place.left, place.whole);
  } else if (launch.parameter_dtype == DType::kFloat16) {
    store_narrow<Float16>(values, piece.parameter, place.first, place.left, place.whole);
  }
  store_states(states, launch, piece, place, index);
}

}  // namespace zeropage::optim
