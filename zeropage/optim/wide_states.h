/// \file
/// Packed states as fp32, block by block: each array is still read and written once, and intermediate values stay in
/// the L1 cache. Internal to this room.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "zeropage/optim/random_bits.h"
#include "zeropage/optim/update.h"

namespace zeropage::optim {

enum class Access { kLook, kChange };

/// Calls `call(wide, count)` for blocks of `arrays`, whose states are not fp32, with fp32 states. Packs them
/// afterwards, unless `call` only reads them.
template <typename Call>
void with_wide_states(const Arrays& arrays, std::int64_t numel, const Step& step, Access access, Call&& call) {
  constexpr std::int64_t kNumel = 4 * kPackedBlockNumel;
  alignas(64) std::array<std::array<float, kNumel>, config::kMaxOptimizerStates> buffers;
  std::array<bool, config::kMaxOptimizerStates> squares;
  for (std::size_t i = 0; i < squares.size(); ++i) squares[i] = is_sum_of_squares(step.kind, static_cast<int>(i));
  for (std::int64_t begin = 0; begin < numel; begin += kNumel) {
    const std::int64_t count = std::min(kNumel, numel - begin);
    const Arrays block = arrays.from(begin);
    Arrays wide = block;
    wide.state_dtype = config::StateDtype::kFloat32;
    for (std::size_t i = 0; i < buffers.size() && block.packed[i].data != nullptr; ++i) {
      wide.states[i] = buffers[i].data();
      unpack(block.packed[i], block.state_dtype, squares[i], wide.states[i], count);
    }
    call(wide, count);
    if (access == Access::kLook) continue;
    for (std::size_t i = 0; i < buffers.size() && block.packed[i].data != nullptr; ++i) {
      pack(wide.states[i], block.packed[i], block.state_dtype, squares[i], count,
           state_rounding_key(step.rounding_key, i), block.index + step.rounding_shift);
    }
  }
}

}  // namespace zeropage::optim
