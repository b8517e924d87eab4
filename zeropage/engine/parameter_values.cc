#include "zeropage/engine/parameter_values.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <utility>

#include "zeropage/base/error.h"
#include "zeropage/checkpoint/exchange.h"
#include "zeropage/engine/flat_values.h"
#include "zeropage/engine/gradient_views.h"
#include "zeropage/engine/speculation.h"
#include "zeropage/engine/state_pieces.h"
#include "zeropage/paging/device_wait.h"

namespace zeropage::engine {

ParameterValues::ParameterValues(const config::Config& config, ModelState& state, reduce::Reducer& reducer,
                                 Speculation& speculation, GradientViews& gradients, comm::Communicator& communicator,
                                 c10::Device device, std::vector<std::int64_t>& updates)
    : config_(config),
      state_(state),
      reducer_(reducer),
      speculation_(speculation),
      gradients_(gradients),
      communicator_(communicator),
      device_(device),
      updates_(updates) {}

at::Tensor ParameterValues::full(const at::Tensor& parameter, const ValueName& name) {
  const c10::AutoGradMode no_grad(false);
  const int index = index_of(parameter);
  if (!is_trained(index)) return {};
  prepare(index);
  if (name.kind == ValueName::Kind::kParameter && state_.is_own_master(page_of(index))) {
    return fp32_copy(state_.tensors()[index].detach(), device_);
  }
  const at::Tensor piece = read_piece(index, name);
  return piece.defined() ? assemble(index, piece) : piece;
}

at::Tensor ParameterValues::local(const at::Tensor& parameter, const ValueName& name) {
  const c10::AutoGradMode no_grad(false);
  const int index = index_of(parameter);
  if (!is_trained(index)) return {};
  prepare(index);
  return read_piece(index, name);
}

void ParameterValues::set_full(const at::Tensor& parameter, const ValueName& name, const at::Tensor& value) {
  const c10::AutoGradMode no_grad(false);
  const int index = index_of(parameter);
  require_settable(index, name);
  if (value.sizes() != parameter.sizes()) {
    throw UsageError(fmt::format("a full value of parameter '{}' has its shape, [{}]; got [{}]", name_of(index),
                                 fmt::join(parameter.sizes(), ", "), fmt::join(value.sizes(), ", ")));
  }
  prepare(index);
  if (name.kind == ValueName::Kind::kParameter) return set_parameter(index, value);
  if (name.kind == ValueName::Kind::kState) return write_state(index, name, piece_of(parameter, value));
  write_gradient(index, piece_of(parameter, value));
  gradients_.follow(index, 0, flat_value(parameter, value, device_));
}

void ParameterValues::set_local(const at::Tensor& parameter, const ValueName& name, const at::Tensor& value) {
  const c10::AutoGradMode no_grad(false);
  const int index = index_of(parameter);
  require_settable(index, name);
  const std::int64_t numel = own_piece(state_, index).numel;
  if (value.numel() != numel) {
    throw UsageError(fmt::format("a local value of parameter '{}' has the {} elements that rank {} updates; got {}",
                                 name_of(index), numel, communicator_.job().rank(), value.numel()));
  }
  prepare(index);
  const at::Tensor flat = fp32_copy(value.reshape({-1}), device_);
  if (name.kind == ValueName::Kind::kParameter) return set_parameter(index, assemble(index, flat));
  if (name.kind == ValueName::Kind::kState) return write_state(index, name, flat);
  write_gradient(index, flat);
  gradients_.follow(index, own_piece(state_, index).parameter_offset, flat);
}

at::Tensor ParameterValues::assemble(const at::Tensor& parameter, const at::Tensor& piece) {
  const c10::AutoGradMode no_grad(false);
  return assemble(index_of(parameter), fp32_copy(piece.reshape({-1}), device_));
}

at::Tensor ParameterValues::piece_of(const at::Tensor& parameter, const at::Tensor& value) const {
  const int index = index_of(parameter);
  const auto piece = own_piece(state_, index);
  return flat_value(state_.tensors()[index], value, device_).narrow(0, piece.parameter_offset, piece.numel);
}

std::vector<std::string> ParameterValues::exchange(const std::string& mine) {
  return checkpoint::exchange_strings(communicator_, mine);
}

int ParameterValues::index_of(const at::Tensor& parameter) const {
  const auto& tensors = state_.tensors();
  const auto found = std::ranges::find_if(tensors, [&](const at::Tensor& each) { return each.is_same(parameter); });
  if (found != tensors.end()) return static_cast<int>(found - tensors.begin());
  throw UsageError("expected a parameter of this engine's model (the object itself, no view or copy of it)");
}

bool ParameterValues::is_trained(int parameter) const { return state_.layout()->parameters()[parameter].trainable; }
const std::string& ParameterValues::name_of(int parameter) const {
  return state_.layout()->parameters()[parameter].name;
}
int ParameterValues::page_of(int parameter) const { return state_.layout()->page_of(parameter); }

int ParameterValues::state_index(const std::string& state) const {
  const auto names = config::optimizer_state_names(config_.optimizer.kind);
  std::vector<std::string> known;
  for (int i = 0; i < config::optimizer_state_count(config_.optimizer); ++i) {
    if (names[i] == state) return i;
    known.emplace_back(names[i]);
  }
  throw UsageError(fmt::format("the optimizer has no elementwise state '{}'; it has {}", state,
                               known.empty() ? "none" : fmt::format("'{}'", fmt::join(known, "', '"))));
}

void ParameterValues::prepare(int parameter) {
  state_.adopt_replaced_data();
  speculation_.rollback(page_of(parameter));
  paging::wait_for_stream(device_, communicator_, "values of a parameter");
}

void ParameterValues::require_settable(int parameter, const ValueName& name) const {
  if (!is_trained(parameter)) {
    throw UsageError(
        fmt::format("parameter '{}' is not trained, so the engine keeps nothing of it but the parameter itself; write "
                    "that (under torch.no_grad)",
                    name_of(parameter)));
  }
  if (name.kind == ValueName::Kind::kGradient && !gradients_.is_published()) {
    throw UsageError(
        fmt::format("the gradient of parameter '{}' can be set between the backward that completes an accumulation "
                    "window and step(); there is none now",
                    name_of(parameter)));
  }
}

at::Tensor ParameterValues::read_piece(int parameter, const ValueName& name) {
  if (name.kind == ValueName::Kind::kParameter) return read_parameter(parameter);
  if (name.kind == ValueName::Kind::kGradient) return read_gradient(parameter);
  const int index = state_index(name.state);
  const auto piece = own_piece(state_, parameter);
  if (piece.numel == 0) return at::empty({0}, at::TensorOptions().device(device_));
  return load_piece(HeldState(state_.state_store(), page_of(parameter), Access::kRead), index, piece).to(device_);
}

/// The parameter is read through torch only if nothing has to be gathered for it.
at::Tensor ParameterValues::read_parameter(int parameter) {
  const int page = page_of(parameter);
  const auto piece = own_piece(state_, parameter);
  if (piece.numel == 0) return at::empty({0}, at::TensorOptions().device(device_));
  const auto& spec = state_.layout()->pages()[page];
  const bool written = state_.pager().is_written(page);
  const auto visible = [&] {
    return fp32_copy(flat_in_memory(state_.tensors()[parameter]).narrow(0, piece.parameter_offset, piece.numel),
                     device_);
  };
  if (state_.is_own_master(page)) {
    if (written || !state_.pager().paged(page)) return visible();
    const HeldParameter held(state_, page, Access::kRead);
    return fp32_copy(memory::flat_view(held.data() + piece.offset * spec.element_bytes, piece.numel,
                                       scalar_type_of(spec.dtype), state_.owned(page).device),
                     device_);
  }
  const auto master =
      load_piece(HeldState(state_.state_store(), page, Access::kRead), StateArrays::kMaster, piece).to(device_);
  if (!written) return master;
  const auto seen = visible();
  return at::where(seen.eq(master.to(scalar_type_of(spec.dtype)).to(at::kFloat)), master, seen);
}

/// Undefined if there is no gradient.
at::Tensor ParameterValues::read_gradient(int parameter) {
  const int page = page_of(parameter);
  if (!gradients_.is_published() || !state_.tensors()[parameter].mutable_grad().defined()) return {};
  const auto piece = own_piece(state_, parameter);
  at::Tensor mean = at::zeros({piece.numel}, at::TensorOptions().device(device_));
  if (piece.numel > 0 && reducer_.has_sum(page)) {
    reducer_.read_sum(page, [&](const at::Tensor& sum) {
      mean.copy_(sum.narrow(0, piece.offset, piece.numel));
      mean.div_(gradients_.divisor());
    });
  }
  return gradients_.current(parameter, piece, mean);
}

void ParameterValues::write_gradient(int parameter, const at::Tensor& mean) {
  const auto piece = own_piece(state_, parameter);
  reducer_.edit_sum(page_of(parameter), [&](const at::Tensor& sum) {
    sum.narrow(0, piece.offset, piece.numel).copy_(mean.mul(gradients_.divisor()));
  });
  reducer_.set_received(parameter, true);
}

void ParameterValues::write_state(int parameter, const ValueName& name, const at::Tensor& flat) {
  const int index = state_index(name.state);
  const auto piece = own_piece(state_, parameter);
  if (piece.numel > 0)
    store_piece(HeldState(state_.state_store(), page_of(parameter), Access::kWrite), index, piece, flat);
}

/// The master gets the exact value, and the parameter gets it rounded, so the master does not change when it follows
/// the parameter.
void ParameterValues::set_parameter(int parameter, const at::Tensor& value) {
  const int page = page_of(parameter);
  const at::Tensor& tensor = state_.tensors()[parameter];
  tensor.detach().copy_(value);
  if (state_.is_own_master(page)) return;
  const auto piece = own_piece(state_, parameter);
  if (piece.numel == 0) return;
  const auto exact = flat_value(tensor, value, device_).narrow(0, piece.parameter_offset, piece.numel);
  store_piece(HeldState(state_.state_store(), page, Access::kWrite), StateArrays::kMaster, piece, exact);
}

at::Tensor ParameterValues::assemble(int parameter, const at::Tensor& piece) {
  const auto& layout = *state_.layout();
  const int page = page_of(parameter);
  if (piece.numel() == layout.parameters()[parameter].numel &&
      state_.owned(page).numel == layout.pages()[page].padded_numel) {
    return shaped(parameter, piece);
  }
  std::vector<layout::Segment> segments;  // per rank
  std::int64_t largest = 0;
  for (int rank = 0; rank < communicator_.size(); ++rank) {
    layout::Segment of_rank;
    for (const auto& segment : layout.shard_segments(page, rank)) {
      if (segment.parameter == parameter) of_rank = segment;
    }
    largest = std::max(largest, of_rank.numel);
    segments.push_back(of_rank);
  }
  const auto options = at::TensorOptions().device(device_).dtype(at::kFloat);
  const auto mine = at::zeros({largest}, options);
  mine.narrow(0, 0, piece.numel()).copy_(piece);
  const auto all = at::empty({communicator_.size() * largest}, options);
  communicator_
      .all_gather(mine.const_data_ptr(), all.mutable_data_ptr(), largest * static_cast<std::int64_t>(sizeof(float)),
                  comm::Tag{"a full value of a parameter", parameter})
      ->wait();
  const auto flat = at::empty({layout.parameters()[parameter].numel}, options);
  for (int rank = 0; rank < communicator_.size(); ++rank) {
    const auto& segment = segments[rank];
    flat.narrow(0, segment.parameter_offset, segment.numel).copy_(all.narrow(0, rank * largest, segment.numel));
  }
  return shaped(parameter, flat);
}

at::Tensor ParameterValues::shaped(int parameter, const at::Tensor& flat) const {
  const at::Tensor& tensor = state_.tensors()[parameter];
  return flat.as_strided(tensor.sizes(), tensor.strides());
}

}  // namespace zeropage::engine
