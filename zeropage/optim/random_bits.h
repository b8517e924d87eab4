/// \file
/// The random bits of stochastic rounding: a hash of what is rounded, so that whoever rounds an element, a GPU's
/// kernels too, rounds it alike. Internal to this room.
#pragma once

#include <cstddef>
#include <cstdint>

namespace zeropage::optim {

/// 32 well mixed bits of an index (a finalizer as of hash tables: each bit of the index turns half of the result's).
constexpr std::uint32_t mix(std::uint32_t bits) {
  bits = (bits ^ (bits >> 16)) * 0x7feb352dU;
  bits = (bits ^ (bits >> 15)) * 0x846ca68bU;
  return bits ^ (bits >> 16);
}

/// What of `key` and of an index lies above the lower 32 bits of the index.
constexpr std::uint32_t key_bits(std::uint64_t key, std::uint64_t index) {
  return mix(static_cast<std::uint32_t>(key) +
             mix(static_cast<std::uint32_t>(key >> 32) + static_cast<std::uint32_t>(index >> 32)));
}

/// The bits for an index with these lower 32 bits.
constexpr std::uint32_t random_bits(std::uint32_t key_bits, std::uint32_t low_index) {
  return mix(mix(low_index) + key_bits);
}

/// The key by which a state of a step is rounded; the parameter itself has `rounding_key`, the step's.
constexpr std::uint64_t state_rounding_key(std::uint64_t rounding_key, std::size_t state) {
  return rounding_key ^ (0x9e3779b97f4a7c15U * (state + 1));
}

}  // namespace zeropage::optim
