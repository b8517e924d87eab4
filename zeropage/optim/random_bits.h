/// \file
/// The random bits of stochastic rounding: a hash of the parameter, element and step, so that the host and a GPU's
/// kernels round an element to the same value. Internal to this room.
#pragma once

#include <cstddef>
#include <cstdint>

namespace zeropage::optim {

/// 32 well mixed bits of an index (a finalizer as in hash tables: each bit of the index changes half of the result's
/// bits on average).
constexpr std::uint32_t mix(std::uint32_t bits) {
  bits = (bits ^ (bits >> 16)) * 0x7feb352dU;
  bits = (bits ^ (bits >> 15)) * 0x846ca68bU;
  return bits ^ (bits >> 16);
}

/// Combines `key` with the upper bits of an index.
constexpr std::uint32_t key_bits(std::uint64_t key, std::uint64_t index) {
  return mix(static_cast<std::uint32_t>(key) +
             mix(static_cast<std::uint32_t>(key >> 32) + static_cast<std::uint32_t>(index >> 32)));
}

/// The bits for an index with these lower 32 bits.
constexpr std::uint32_t random_bits(std::uint32_t key_bits, std::uint32_t low_index) {
  return mix(mix(low_index) + key_bits);
}

/// The key for rounding a state in a step; the parameter itself uses the step's `rounding_key`.
constexpr std::uint64_t state_rounding_key(std::uint64_t rounding_key, std::size_t state) {
  return rounding_key ^ (0x9e3779b97f4a7c15U * (state + 1));
}

}  // namespace zeropage::optim
