#include "zeropage/engine/checkpoint_tensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <numeric>

#include "zeropage/base/error.h"

namespace zeropage::engine {
namespace {

constexpr std::array<std::pair<const char*, at::ScalarType>, 10> kTypes = {{{"F32", at::kFloat},
                                                                            {"BF16", at::kBFloat16},
                                                                            {"F16", at::kHalf},
                                                                            {"F64", at::kDouble},
                                                                            {"I64", at::kLong},
                                                                            {"I32", at::kInt},
                                                                            {"I16", at::kShort},
                                                                            {"I8", at::kChar},
                                                                            {"U8", at::kByte},
                                                                            {"BOOL", at::kBool}}};

}  // namespace

at::ScalarType type_of(const checkpoint::TensorInfo& info) {
  return std::find_if(kTypes.begin(), kTypes.end(), [&](const auto& row) { return info.dtype == row.first; })->second;
}

std::vector<std::int64_t> memory_order(const at::Tensor& tensor) {
  // Tensors that are not dense are stored contiguously.
  if (tensor.is_contiguous() || !tensor.is_non_overlapping_and_dense()) return {};
  std::vector<std::int64_t> order(static_cast<std::size_t>(tensor.dim()));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return tensor.stride(a) > tensor.stride(b); });
  return order;
}

std::vector<std::int64_t> stored_shape(const at::Tensor& tensor) {
  std::vector<std::int64_t> shape;
  for (const auto dim : memory_order(tensor)) shape.push_back(tensor.size(dim));
  return shape.empty() ? tensor.sizes().vec() : shape;
}

std::vector<std::pair<std::string, int>> state_arrays(const CheckpointedState& state, int page) {
  std::vector<std::pair<std::string, int>> arrays;
  if (state.model.has_masters(page)) arrays.emplace_back("master", StateArrays::kMaster);
  const auto names = config::optimizer_state_names(state.config.optimizer.kind);
  for (int i = 0; i < config::optimizer_state_count(state.config.optimizer); ++i) arrays.emplace_back(names[i], i);
  return arrays;
}

at::ScalarType page_type(const CheckpointedState& state, const layout::Page& page, int parameter) {
  switch (page.dtype) {
    case DType::kFloat32: return at::kFloat;
    case DType::kBFloat16: return at::kBFloat16;
    case DType::kFloat16: return at::kHalf;
    default: return state.model.tensors()[parameter].scalar_type();
  }
}

std::string type_name(at::ScalarType type, const std::string& tensor) {
  for (const auto& [name, known] : kTypes) {
    if (known == type) return name;
  }
  throw CheckpointError(
      fmt::format("tensor '{}' has the type {}, which checkpoints do not support", tensor, c10::toString(type)));
}

}  // namespace zeropage::engine
