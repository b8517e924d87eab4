#include "zeropage/optim/convert.h"

#include <fmt/format.h>

#include <cstring>

#include "zeropage/base/error.h"
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

}  // namespace zeropage::optim
