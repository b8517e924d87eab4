#include "zeropage/optim/packed_state.h"

#include <algorithm>

#include "zeropage/base/dtype.h"
#include "zeropage/config/optimizers.h"
#include "zeropage/optim/convert.h"
#include "zeropage/optim/packed_code.h"
#include "zeropage/optim/random_bits.h"
#include "zeropage/optim/vector_clones.h"

namespace zeropage::optim {
namespace {

using config::StateDtype;

template <typename Code>
inline void widen_block(const std::uint8_t* __restrict codes, float scale, float* __restrict wide, std::int64_t numel) {
  for (std::int64_t i = 0; i < numel; ++i) wide[i] = Code::widen(codes[i]) * scale;
}

template <typename Code>
inline void round_block(const float* __restrict wide, float inverse_scale, std::uint8_t* __restrict codes,
                        std::int64_t numel, std::uint32_t key, std::uint32_t first) {
  for (std::int64_t i = 0; i < numel; ++i) {
    codes[i] = Code::round(wide[i] * inverse_scale, random_bits(key, first + static_cast<std::uint32_t>(i)));
  }
}

ZEROPAGE_VECTOR_CLONES
void widen_signed(const std::uint8_t* codes, float scale, float* wide, std::int64_t numel) {
  widen_block<SignedCode>(codes, scale, wide, numel);
}

ZEROPAGE_VECTOR_CLONES
void widen_squares(const std::uint8_t* codes, float scale, float* wide, std::int64_t numel) {
  widen_block<SquaresCode>(codes, scale, wide, numel);
}

ZEROPAGE_VECTOR_CLONES
void round_signed(const float* wide, float inverse_scale, std::uint8_t* codes, std::int64_t numel, std::uint32_t key,
                  std::uint32_t first) {
  round_block<SignedCode>(wide, inverse_scale, codes, numel, key, first);
}

ZEROPAGE_VECTOR_CLONES
void round_squares(const float* wide, float inverse_scale, std::uint8_t* codes, std::int64_t numel, std::uint32_t key,
                   std::uint32_t first) {
  round_block<SquaresCode>(wide, inverse_scale, codes, numel, key, first);
}

ZEROPAGE_VECTOR_CLONES
std::uint32_t largest_magnitude(const float* wide, std::int64_t numel) {
  std::uint32_t largest = 0;
  for (std::int64_t i = 0; i < numel; ++i) {
    const std::uint32_t magnitude = magnitude_bits(wide[i]);
    largest = largest > magnitude ? largest : magnitude;
  }
  return largest;
}

template <typename Call>
void for_each_block(std::int64_t numel, Call&& call) {
  for (std::int64_t begin = 0; begin < numel; begin += kPackedBlockNumel) {
    call(begin, std::min(kPackedBlockNumel, numel - begin));
  }
}

}  // namespace

PackedState PackedState::from(std::int64_t offset, StateDtype dtype) const {
  if (data == nullptr) return *this;
  if (dtype == StateDtype::kBFloat16) return {static_cast<std::uint16_t*>(data) + offset, nullptr};
  return {static_cast<std::uint8_t*>(data) + offset, exponents + offset / kPackedBlockNumel};
}

bool is_sum_of_squares(config::OptimizerKind kind, int index) {
  const auto* entry = config::find_optimizer(kind);
  return entry == nullptr ? index == 1 : entry->squares.at(static_cast<std::size_t>(index));
}

void unpack(const PackedState& state, StateDtype dtype, bool squares, float* wide, std::int64_t numel) {
  if (dtype == StateDtype::kBFloat16) return to_float32(state.data, DType::kBFloat16, wide, numel);
  const auto* codes = static_cast<const std::uint8_t*>(state.data);
  for_each_block(numel, [&](std::int64_t begin, std::int64_t count) {
    const float scale = block_scale(state.exponents[begin / kPackedBlockNumel]);
    (squares ? widen_squares : widen_signed)(codes + begin, scale, wide + begin, count);
  });
}

void pack(const float* wide, const PackedState& state, StateDtype dtype, bool squares, std::int64_t numel,
          std::uint64_t key, std::int64_t first) {
  if (dtype == StateDtype::kBFloat16) {
    return round_stochastically(wide, state.data, DType::kBFloat16, numel, key, first);
  }
  auto* codes = static_cast<std::uint8_t*>(state.data);
  for_each_block(numel, [&](std::int64_t begin, std::int64_t count) {
    const std::uint8_t exponent = shared_exponent(largest_magnitude(wide + begin, count));
    state.exponents[begin / kPackedBlockNumel] = exponent;
    const float inverse = inverse_block_scale(exponent);
    const auto index = static_cast<std::uint64_t>(first + begin);
    (squares ? round_squares : round_signed)(wide + begin, inverse, codes + begin, count, key_bits(key, index),
                                             static_cast<std::uint32_t>(index));
  });
}

}  // namespace zeropage::optim
