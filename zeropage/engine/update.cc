#include "zeropage/engine/update.h"

#include <c10/core/GradMode.h>

#include <cmath>

#include "zeropage/engine/device_update.h"
#include "zeropage/engine/host_update.h"

namespace zeropage::engine {
namespace {

double segment_sum_of_squares(const std::byte* data, DType dtype, std::int64_t numel, c10::Device device) {
  if (device.is_cpu()) return sum_of_squares_on_host(data, dtype, numel);
  return paging::flat_view(const_cast<std::byte*>(data), numel, scalar_type_of(dtype), device)
      .to(at::kDouble)
      .square()
      .sum()
      .item<double>();
}

}  // namespace

GradientSum sum_gradients(const ModelState& state, const reduce::Reducer& reducer, int rank, c10::Device device) {
  GradientSum sum;
  for (const auto& page : state.layout()->pages()) {
    const auto gradient = reducer.gradient(page.index);
    if (gradient.data == nullptr) continue;
    const auto& own = state.owned(page.index);
    const std::int64_t begin = rank * page.shard_numel;
    for (const auto& segment : state.layout()->segments(page.index, begin, begin + page.shard_numel)) {
      const auto* data = static_cast<const std::byte*>(gradient.data) +
                         (segment.page_offset - own.begin) * element_bytes(gradient.dtype);
      const double squares = segment_sum_of_squares(data, gradient.dtype, segment.numel, device);
      if (sum.overflow_parameter < 0 && !std::isfinite(squares)) sum.overflow_parameter = segment.parameter;
      sum.sum_of_squares += squares;
    }
  }
  return sum;
}

void update_page(const ModelState& state, const reduce::Reducer& reducer, int page, const UpdateInputs& inputs,
                 c10::Device device) {
  const Span span(state.pager().handle()->timeline.get(), SpanKind::kOperator, "update of a page", page);
  c10::AutoGradMode no_grad(false);
  const auto& spec = state.layout()->pages()[page];
  const auto& own = state.owned(page);
  const auto gradient = reducer.gradient(page);
  HeldState held(state.home(), page, Access::kWrite);
  auto* master = held.arrays().master;
  const optim::Arrays range{.master = master != nullptr ? master : reinterpret_cast<float*>(own.parameter),
                            .states = held.arrays().states,
                            .gradient = gradient.data,
                            .gradient_dtype = gradient.dtype,
                            .parameter = own.parameter,
                            .parameter_dtype = spec.dtype};
  std::vector<Segment> segments;
  for (const auto& piece : state.layout()->segments(page, own.begin, own.begin + own.numel)) {
    if (!inputs.received[piece.parameter]) continue;
    segments.push_back(
        {piece.page_offset - own.begin,
         piece.numel,
         {inputs.kind, inputs.groups[spec.group], inputs.steps[piece.parameter], inputs.gradient_scale}});
  }
  if (device.is_cpu()) return update_on_host(range, segments);
  for (const auto& segment : segments) {
    update_on_device(range.from(segment.offset), segment.numel, segment.step, device);
  }
}

}  // namespace zeropage::engine
