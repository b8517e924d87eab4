/// \file
/// Conversions between our and torch's element types.
#pragma once

#include <c10/core/ScalarType.h>

#include "zeropage/base/dtype.h"

namespace zeropage {

/// The project's type for a torch element type; kOther for types that are only moved.
inline DType dtype_of(at::ScalarType type) {
  switch (type) {
    case at::kFloat: return DType::kFloat32;
    case at::kBFloat16: return DType::kBFloat16;
    case at::kHalf: return DType::kFloat16;
    case at::kDouble: return DType::kFloat64;
    default: return DType::kOther;
  }
}

/// The inverse of dtype_of; kByte for kOther.
inline at::ScalarType scalar_type_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat32: return at::kFloat;
    case DType::kBFloat16: return at::kBFloat16;
    case DType::kFloat16: return at::kHalf;
    case DType::kFloat64: return at::kDouble;
    case DType::kOther: return at::kByte;
  }
  return at::kByte;
}

}  // namespace zeropage
