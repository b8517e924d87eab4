/// \file
/// The update kernels. update_kernel: masters and fp32 states, the fast one, of which there is one per pair of types.
/// update_rounded_kernel: what is rounded at random, packed states and 16-bit parameters without masters, whose types it looks
/// up at run time; threads of a block share the exponent of an int8 block. Both give the scalar twin's bits, but for those of
/// a NaN, which the processor chooses. For update_cuda.cu alone.
#pragma once

#include <cstddef>
#include <cstdint>

#include "zeropage/base/dtype.h"
#include "zeropage/optim/convert.h"
#include "zeropage/optim/cuda_launch.h"
#include "zeropage/optim/elements.h"
#include "zeropage/optim/packed_code.h"
#include "zeropage/optim/packed_state.h"
#include "zeropage/optim/random_bits.h"

namespace zeropage::optim {

constexpr int kThreads = 256;
constexpr int kPieces = 32;  // kernels take at most 4 KB of arguments
static_assert(kThreads == kPackedBlockNumel);

template <typename Rule>
struct Piece {
  float* master = nullptr;     ///< null: the parameter is its own
  PackedState states[2] = {};  ///< also those in fp32
  const void* gradient = nullptr;
  void* parameter = nullptr;
  std::int64_t numel = 0;
  std::uint64_t rounding_key = 0;
  std::uint64_t index = 0;  ///< of the first element, for rounding
  Rule rule = {};
};

template <typename Rule>
struct Launch {
  Piece<Rule> pieces[kPieces] = {};
  unsigned first_block[kPieces] = {};
  int count = 0;
  DType gradient_dtype = DType::kFloat32;
  DType parameter_dtype = DType::kFloat32;
  config::StateDtype state_dtype = config::StateDtype::kFloat32;
  bool squares[2] = {};  ///< is_sum_of_squares, per state
};
static_assert(sizeof(Launch<AdamRule>) <= 4096);

/// The piece of this block; sets `begin` to the first of the `block_numel` elements that are this block's.
template <typename Rule>
__device__ const Piece<Rule>& piece_of_block(const Launch<Rule>& launch, std::int64_t block_numel,
                                             std::int64_t& begin) {
  int index = 0;
  while (index + 1 < launch.count && blockIdx.x >= launch.first_block[index + 1]) ++index;
  begin = static_cast<std::int64_t>(blockIdx.x - launch.first_block[index]) * block_numel;
  return launch.pieces[index];
}

struct Float32 {
  static __device__ float load(const void* data, std::int64_t i) { return static_cast<const float*>(data)[i]; }
  static __device__ void store(float, void*, std::int64_t) {}  // the master is the parameter
};

struct BFloat16 {
  static __device__ float load(const void* data, std::int64_t i) {
    return float_from_bfloat16(static_cast<const std::uint16_t*>(data)[i]);
  }
  static __device__ void store(float value, void* data, std::int64_t i) {
    static_cast<std::uint16_t*>(data)[i] = bfloat16_from_float(value);
  }
};

struct Float16 {
  static __device__ float load(const void* data, std::int64_t i) {
    return float_from_float16(static_cast<const std::uint16_t*>(data)[i]);
  }
  static __device__ void store(float value, void* data, std::int64_t i) {
    static_cast<std::uint16_t*>(data)[i] = float16_from_float(value);
  }
};

constexpr std::int64_t kBlockNumel = 8 * kThreads;  // of update_kernel

template <typename Rule, typename Gradient, typename Parameter>
__global__ void __launch_bounds__(kThreads) update_kernel(const __grid_constant__ Launch<Rule> launch) {
  std::int64_t begin = 0;
  const Piece<Rule>& piece = piece_of_block(launch, kBlockNumel, begin);
  const std::int64_t end = piece.numel < begin + kBlockNumel ? piece.numel : begin + kBlockNumel;
  float* const firsts = static_cast<float*>(piece.states[0].data);
  float* const seconds = static_cast<float*>(piece.states[1].data);
  for (std::int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
    float first = Rule::kStates > 0 ? firsts[i] : 0.0F;
    float second = Rule::kStates > 1 ? seconds[i] : 0.0F;
    const float gradient = Gradient::load(piece.gradient, i) * piece.rule.gradient_scale;
    const float updated = update_element(piece.rule, piece.master[i], first, second, gradient);
    piece.master[i] = updated;
    if constexpr (Rule::kStates > 0) firsts[i] = first;
    if constexpr (Rule::kStates > 1) seconds[i] = second;
    Parameter::store(updated, piece.parameter, i);
  }
}

inline __device__ float load_as(DType dtype, const void* data, std::int64_t i) {
  if (dtype == DType::kBFloat16) return BFloat16::load(data, i);
  if (dtype == DType::kFloat16) return Float16::load(data, i);
  return Float32::load(data, i);
}

inline __device__ void store_as(DType dtype, float value, void* data, std::int64_t i) {
  if (dtype == DType::kBFloat16) BFloat16::store(value, data, i);
  if (dtype == DType::kFloat16) Float16::store(value, data, i);
}

inline __device__ void store_at_random(DType dtype, float value, void* data, std::int64_t i, std::uint32_t random) {
  static_cast<std::uint16_t*>(data)[i] =
      dtype == DType::kBFloat16 ? bfloat16_at_random(value, random) : float16_at_random(value, random);
}

inline __device__ float load_state(config::StateDtype dtype, bool squares, const PackedState& state, std::int64_t i) {
  if (dtype == config::StateDtype::kFloat32) return Float32::load(state.data, i);
  if (dtype == config::StateDtype::kBFloat16) return BFloat16::load(state.data, i);
  const std::uint8_t code = static_cast<const std::uint8_t*>(state.data)[i];
  const float widened = squares ? SquaresCode::widen(code) : SignedCode::widen(code);
  return widened * block_scale(state.exponents[i / kPackedBlockNumel]);
}

/// The largest of all threads' values, for all of them.
inline __device__ std::uint32_t largest_in_block(std::uint32_t value) {
  __shared__ std::uint32_t largest;
  if (threadIdx.x == 0) largest = 0;
  __syncthreads();
  atomicMax(&largest, value);
  __syncthreads();
  const std::uint32_t found = largest;
  __syncthreads();  // before the next call sets it to 0
  return found;
}

/// All threads of a block call this together. `there`: the thread has an element; `index`: of the block's first one, for rounding.
inline __device__ void store_packed_block(bool squares, float value, const PackedState& state, std::int64_t begin,
                                          bool there, std::uint64_t key, std::uint64_t index) {
  const std::uint8_t exponent = shared_exponent(largest_in_block(there ? magnitude_bits(value) : 0));
  if (threadIdx.x == 0) state.exponents[begin / kPackedBlockNumel] = exponent;
  if (!there) return;
  const float scaled = value * inverse_block_scale(exponent);
  const std::uint32_t random =
      random_bits(key_bits(key, index), static_cast<std::uint32_t>(index) + static_cast<std::uint32_t>(threadIdx.x));
  static_cast<std::uint8_t*>(state.data)[begin + threadIdx.x] =
      squares ? SquaresCode::round(scaled, random) : SignedCode::round(scaled, random);
}

/// One packed block per thread block, one element per thread.
template <typename Rule>
__global__ void __launch_bounds__(kThreads) update_rounded_kernel(const __grid_constant__ Launch<Rule> launch) {
  std::int64_t begin = 0;
  const Piece<Rule>& piece = piece_of_block(launch, kThreads, begin);
  const std::int64_t i = begin + threadIdx.x;
  const bool there = i < piece.numel;
  const std::uint64_t index = piece.index + static_cast<std::uint64_t>(i);
  const auto random = [&](std::uint64_t key) {
    return random_bits(key_bits(key, index), static_cast<std::uint32_t>(index));
  };
  float states[2] = {0.0F, 0.0F};
  if (there) {
    for (int s = 0; s < Rule::kStates; ++s) {
      states[s] = load_state(launch.state_dtype, launch.squares[s], piece.states[s], i);
    }
    const bool has_master = piece.master != nullptr;
    const float old = has_master ? piece.master[i] : load_as(launch.parameter_dtype, piece.parameter, i);
    const float gradient = load_as(launch.gradient_dtype, piece.gradient, i) * piece.rule.gradient_scale;
    const float updated = update_element(piece.rule, old, states[0], states[1], gradient);
    if (has_master) {
      piece.master[i] = updated;
      store_as(launch.parameter_dtype, updated, piece.parameter, i);
    } else {
      store_at_random(launch.parameter_dtype, updated, piece.parameter, i, random(piece.rounding_key));
    }
  }
  for (int s = 0; s < Rule::kStates; ++s) {
    const PackedState& state = piece.states[s];
    const std::uint64_t key = state_rounding_key(piece.rounding_key, static_cast<std::size_t>(s));
    if (launch.state_dtype == config::StateDtype::kInt8) {
      store_packed_block(launch.squares[s], states[s], state, begin, there, key, piece.index + begin);
    } else if (there && launch.state_dtype == config::StateDtype::kBFloat16) {
      static_cast<std::uint16_t*>(state.data)[i] = bfloat16_at_random(states[s], random(key));
    } else if (there) {
      static_cast<float*>(state.data)[i] = states[s];
    }
  }
}

}  // namespace zeropage::optim
