#include "zeropage/checkpoint/tensor_info.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <array>
#include <string_view>
#include <utility>

#include "zeropage/base/error.h"
#include "zeropage/base/json_text.h"

namespace zeropage::checkpoint {
namespace {

constexpr std::array<std::pair<std::string_view, std::int64_t>, 10> kDtypes = {{{"F32", 4},
                                                                                {"BF16", 2},
                                                                                {"F16", 2},
                                                                                {"F64", 8},
                                                                                {"I64", 8},
                                                                                {"I32", 4},
                                                                                {"I16", 2},
                                                                                {"I8", 1},
                                                                                {"U8", 1},
                                                                                {"BOOL", 1}}};
constexpr std::int64_t kMaxNumel = INT64_MAX / 8;

}  // namespace

std::int64_t dtype_bytes(const std::string& dtype, const std::string& where) {
  for (const auto& [name, bytes] : kDtypes) {
    if (name == dtype) return bytes;
  }
  throw CheckpointError(
      fmt::format("{}: the element type '{}' is not known; expected F32, BF16, F16, F64, I64, I32, I16, "
                  "I8, U8 or BOOL",
                  where, zeropage::json::printable(dtype)));
}

void check_name(const std::string& name, const std::string& where) {
  if (zeropage::json::escaped(name) == name) return;
  throw CheckpointError(fmt::format("{}: the name {} has control characters, which no terminal should get", where,
                                    zeropage::json::quote(name)));
}

std::optional<DType> float_type(const std::string& dtype) {
  if (dtype == "F32") return DType::kFloat32;
  if (dtype == "BF16") return DType::kBFloat16;
  if (dtype == "F16") return DType::kFloat16;
  return std::nullopt;
}

std::int64_t shape_numel(const std::vector<std::int64_t>& shape, const std::string& where) {
  std::int64_t numel = 1;
  for (const std::int64_t extent : shape) {
    // The other extents are limited even if one is 0, so that later computations with them do not overflow.
    if (extent < 0 || extent > kMaxNumel || (extent > 0 && numel > kMaxNumel / extent)) {
      throw CheckpointError(fmt::format("{}: the shape [{}] is too large", where, fmt::join(shape, ", ")));
    }
    numel *= extent;
  }
  return numel;
}

}  // namespace zeropage::checkpoint
