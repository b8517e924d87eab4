/// \file
/// The description of a tensor in files: element type by its safetensors name, shape, sizes that cannot overflow.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "zeropage/base/dtype.h"

namespace zeropage::checkpoint {

struct TensorInfo {
  std::string name;
  std::string dtype;  ///< as in safetensors: F32, BF16, F16, F64, I64, I32, I16, I8, U8, BOOL
  std::vector<std::int64_t> shape;

  bool operator==(const TensorInfo&) const = default;
};

/// Bytes of one element. Errors: CheckpointError for a type that is not in the list above; `where` is part of the
/// message.
std::int64_t dtype_bytes(const std::string& dtype, const std::string& where);

/// The type of F32, BF16 and F16, which can be converted into each other; nullopt for others.
std::optional<DType> float_type(const std::string& dtype);

/// Refuses names with control characters, since messages show them. Errors: CheckpointError naming `where`.
void check_name(const std::string& name, const std::string& where);

/// The product of a shape. Errors: CheckpointError when an extent is negative or numel * 8 bytes exceed 63 bits.
std::int64_t shape_numel(const std::vector<std::int64_t>& shape, const std::string& where);

}  // namespace zeropage::checkpoint
