/// \file
/// Element types that rooms without torch can name.
#pragma once

#include <cstdint>
#include <string_view>

namespace zeropage {

/// Element type of a page, a shard or a buffer. `kOther` is for types that the engine only moves and never computes
/// with (integers, bool, complex). The size of their elements is stored separately.
enum class DType : std::uint8_t { kFloat32, kBFloat16, kFloat16, kFloat64, kOther };

/// Bytes of one element; 1 for kOther, whose counts are bytes.
constexpr std::int64_t element_bytes(DType dtype) {
  switch (dtype) {
    case DType::kFloat32: return 4;
    case DType::kBFloat16:
    case DType::kFloat16: return 2;
    case DType::kFloat64: return 8;
    case DType::kOther: return 1;
  }
  return 1;
}

/// "fp32", "bf16", "fp16", "fp64" or "bytes".
constexpr std::string_view dtype_name(DType dtype) {
  switch (dtype) {
    case DType::kFloat32: return "fp32";
    case DType::kBFloat16: return "bf16";
    case DType::kFloat16: return "fp16";
    case DType::kFloat64: return "fp64";
    case DType::kOther: return "bytes";
  }
  return "bytes";
}

}  // namespace zeropage
