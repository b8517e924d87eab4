#include "zeropage/optim/convert.h"

#include <fmt/format.h>

#include <cstring>

#include "zeropage/base/error.h"
#include "zeropage/optim/random_bits.h"
#include "zeropage/optim/vector_clones.h"

namespace zeropage::optim {
namespace {

ZEROPAGE_VECTOR_CLONES
void widen_bfloat16(const std::uint16_t* __restrict source, float* __restrict destination, std::int64_t numel) {
  for (std::int64_t i = 0; i < numel; ++i) destination[i] = float_from_bfloat16(source[i]);
}

ZEROPAGE_VECTOR_CLONES
void widen_float16(const std::uint16_t* __restrict source, float* __restrict destination, std::int64_t numel) {
  for (std::int64_t i = 0; i < numel; ++i) destination[i] = float_from_float16(source[i]);
}

ZEROPAGE_VECTOR_CLONES
void narrow_bfloat16(const float* __restrict source, std::uint16_t* __restrict destination, std::int64_t numel) {
  for (std::int64_t i = 0; i < numel; ++i) destination[i] = bfloat16_from_float(source[i]);
}

ZEROPAGE_VECTOR_CLONES
void narrow_float16(const float* __restrict source, std::uint16_t* __restrict destination, std::int64_t numel) {
  for (std::int64_t i = 0; i < numel; ++i) destination[i] = float16_from_float(source[i]);
}

ZEROPAGE_VECTOR_CLONES
void round_bfloat16(const float* __restrict source, std::uint16_t* __restrict destination, std::int64_t numel,
                    std::uint32_t key, std::uint32_t first) {
  for (std::int64_t i = 0; i < numel; ++i) {
    destination[i] = bfloat16_at_random(source[i], random_bits(key, first + static_cast<std::uint32_t>(i)));
  }
}

ZEROPAGE_VECTOR_CLONES
void round_float16(const float* __restrict source, std::uint16_t* __restrict destination, std::int64_t numel,
                   std::uint32_t key, std::uint32_t first) {
  for (std::int64_t i = 0; i < numel; ++i) {
    destination[i] = float16_at_random(source[i], random_bits(key, first + static_cast<std::uint32_t>(i)));
  }
}

[[noreturn]] void throw_not_convertible(DType dtype) {
  throw UsageError(fmt::format("conversion to or from fp32: expected fp32, bf16 or fp16, got {}", dtype_name(dtype)));
}

}  // namespace

void to_float32(const void* source, DType source_dtype, float* destination, std::int64_t numel) {
  const auto* narrow = static_cast<const std::uint16_t*>(source);
  switch (source_dtype) {
    case DType::kFloat32:
      if (numel > 0) std::memcpy(destination, source, static_cast<std::size_t>(numel) * sizeof(float));
      return;
    case DType::kBFloat16: return widen_bfloat16(narrow, destination, numel);
    case DType::kFloat16: return widen_float16(narrow, destination, numel);
    default: throw_not_convertible(source_dtype);
  }
}

void from_float32(const float* source, void* destination, DType destination_dtype, std::int64_t numel) {
  auto* narrow = static_cast<std::uint16_t*>(destination);
  switch (destination_dtype) {
    case DType::kFloat32:
      if (numel > 0) std::memcpy(destination, source, static_cast<std::size_t>(numel) * sizeof(float));
      return;
    case DType::kBFloat16: return narrow_bfloat16(source, narrow, numel);
    case DType::kFloat16: return narrow_float16(source, narrow, numel);
    default: throw_not_convertible(destination_dtype);
  }
}

void round_stochastically(const float* source, void* destination, DType destination_dtype, std::int64_t numel,
                          std::uint64_t key, std::int64_t first) {
  auto* narrow = static_cast<std::uint16_t*>(destination);
  const auto index = static_cast<std::uint64_t>(first);
  const auto low = static_cast<std::uint32_t>(index);
  // The loops count in 32 bits; the upper bits of the index are a part of the key.
  const std::int64_t until_carry = (std::int64_t{1} << 32) - low;
  if (numel > until_carry) {
    round_stochastically(source, destination, destination_dtype, until_carry, key, first);
    return round_stochastically(source + until_carry, narrow + until_carry, destination_dtype, numel - until_carry, key,
                                first + until_carry);
  }
  const std::uint32_t upper = key_bits(key, index);
  switch (destination_dtype) {
    case DType::kBFloat16: return round_bfloat16(source, narrow, numel, upper, low);
    case DType::kFloat16: return round_float16(source, narrow, numel, upper, low);
    default: throw_not_convertible(destination_dtype);
  }
}

}  // namespace zeropage::optim
