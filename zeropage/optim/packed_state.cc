#include "zeropage/optim/packed_state.h"

#include <algorithm>
#include <bit>

#include "zeropage/base/dtype.h"
#include "zeropage/optim/convert.h"
#include "zeropage/optim/random_bits.h"
#include "zeropage/optim/vector_clones.h"

namespace zeropage::optim {
namespace {

using config::StateDtype;

constexpr std::uint32_t kInfiniteBlock = 255;  // its exponent: unpacks to infinity and NaN
constexpr std::uint32_t kMagnitude = 0x7fffffffU;

/// A code of 8 bits with `exponent_bits` of exponent and 3 of mantissa, after a sign where one fits.
template <int exponent_bits>
struct Code {
  static constexpr bool kSigned = exponent_bits == 4;
  // In fp32's terms: where the code's normal numbers begin, below the block's exponent, which stands for 2^0.
  static constexpr std::uint32_t kFirstExponent = 127 - ((1U << exponent_bits) - 2);
  static constexpr std::uint32_t kLargest = (1U << (exponent_bits + 3)) - 1;
  static constexpr float kUnit = std::bit_cast<float>((kFirstExponent - 3) << 23);  // between subnormals
  static constexpr float kUnitsPerOne = std::bit_cast<float>((254 - (kFirstExponent - 3)) << 23);

  static inline float widen(std::uint8_t code) {
    const std::uint32_t field = code & kLargest;
    const float normal = std::bit_cast<float>((field + ((kFirstExponent - 1) << 3)) << 20);
    const float subnormal = static_cast<float>(static_cast<std::int32_t>(field)) * kUnit;
    const std::uint32_t magnitude = std::bit_cast<std::uint32_t>(field < 8 ? subnormal : normal);
    return std::bit_cast<float>(magnitude | (kSigned ? static_cast<std::uint32_t>(code & 0x80U) << 24 : 0U));
  }

  static inline std::uint8_t round(float value, std::uint32_t random) {
    const auto bits = std::bit_cast<std::uint32_t>(value);
    const std::uint32_t magnitude = bits & kMagnitude;
    const std::uint32_t normal = ((magnitude + (random & 0xfffffU)) >> 20) - ((kFirstExponent - 1) << 3);
    const float units = std::bit_cast<float>(magnitude) * kUnitsPerOne + static_cast<float>(random >> 16) * 0x1p-16F;
    const auto subnormal = static_cast<std::uint32_t>(static_cast<std::int32_t>(units < 16.0F ? units : 16.0F));
    std::uint32_t code = magnitude < (kFirstExponent << 23) ? subnormal : normal;
    code = code < kLargest ? code : kLargest;
    if (kSigned) return static_cast<std::uint8_t>(code | ((bits >> 24) & 0x80U));
    return static_cast<std::uint8_t>(code == 0 && magnitude != 0 ? 1U : code);
  }
};

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

using Signed = Code<4>;
using Squares = Code<5>;

ZEROPAGE_VECTOR_CLONES
void widen_signed(const std::uint8_t* codes, float scale, float* wide, std::int64_t numel) {
  widen_block<Signed>(codes, scale, wide, numel);
}

ZEROPAGE_VECTOR_CLONES
void widen_squares(const std::uint8_t* codes, float scale, float* wide, std::int64_t numel) {
  widen_block<Squares>(codes, scale, wide, numel);
}

ZEROPAGE_VECTOR_CLONES
void round_signed(const float* wide, float inverse_scale, std::uint8_t* codes, std::int64_t numel, std::uint32_t key,
                  std::uint32_t first) {
  round_block<Signed>(wide, inverse_scale, codes, numel, key, first);
}

ZEROPAGE_VECTOR_CLONES
void round_squares(const float* wide, float inverse_scale, std::uint8_t* codes, std::int64_t numel, std::uint32_t key,
                   std::uint32_t first) {
  round_block<Squares>(wide, inverse_scale, codes, numel, key, first);
}

/// The bits of the largest magnitude; NaN is above infinity.
ZEROPAGE_VECTOR_CLONES
std::uint32_t largest_bits(const float* wide, std::int64_t numel) {
  std::uint32_t largest = 0;
  for (std::int64_t i = 0; i < numel; ++i) {
    const std::uint32_t magnitude = std::bit_cast<std::uint32_t>(wide[i]) & kMagnitude;
    largest = largest > magnitude ? largest : magnitude;
  }
  return largest;
}

/// The largest code is 1.875: what lies above it takes the next exponent.
std::uint32_t shared_exponent(const float* wide, std::int64_t numel) {
  const std::uint32_t exponent = (largest_bits(wide, numel) + 0xfffffU) >> 23;
  return exponent < 254 ? exponent : kInfiniteBlock;
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
  return index == 1 || kind == config::OptimizerKind::kAdagrad;
}

void unpack(const PackedState& state, StateDtype dtype, bool squares, float* wide, std::int64_t numel) {
  if (dtype == StateDtype::kBFloat16) return to_float32(state.data, DType::kBFloat16, wide, numel);
  const auto* codes = static_cast<const std::uint8_t*>(state.data);
  for_each_block(numel, [&](std::int64_t begin, std::int64_t count) {
    const float scale = std::bit_cast<float>(std::uint32_t{state.exponents[begin / kPackedBlockNumel]} << 23);
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
    const std::uint32_t exponent = shared_exponent(wide + begin, count);
    state.exponents[begin / kPackedBlockNumel] = static_cast<std::uint8_t>(exponent);
    const float inverse = exponent == kInfiniteBlock ? 0.0F : std::bit_cast<float>((254 - exponent) << 23);
    const auto index = static_cast<std::uint64_t>(first + begin);
    (squares ? round_squares : round_signed)(wide + begin, inverse, codes + begin, count, key_bits(key, index),
                                             static_cast<std::uint32_t>(index));
  });
}

}  // namespace zeropage::optim
