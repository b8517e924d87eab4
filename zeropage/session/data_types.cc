#include "zeropage/session/data_types.h"

#include "zeropage/comm/c10d/c10d_dtype.h"
#include "zeropage/formula/model_state.h"

namespace zeropage::session {
namespace {

std::optional<at::ScalarType> named_type(const std::optional<DType>& dtype) {
  return dtype ? std::optional(scalar_type_of(*dtype)) : std::nullopt;
}

}  // namespace

DataTypes data_types(const config::Config& config) {
  const at::ScalarType parameters = scalar_type_of(formula::compute_dtype(config.precision));
  return {parameters, named_type(config.gradients.accumulation_dtype).value_or(at::kFloat),
          named_type(config.gradients.communication_dtype).value_or(parameters), named_type(config.autocast_dtype),
          named_type(config.types.buffers)};
}

}  // namespace zeropage::session
