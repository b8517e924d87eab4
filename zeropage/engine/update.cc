#include "zeropage/engine/update.h"

#include <c10/core/GradMode.h>

#include <cmath>
#include <utility>

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

/// What of an owned range belongs to parameters that received a gradient, in one piece where that is all of it.
std::vector<Segment> changed_runs(const ModelState& state, int page, const std::vector<Segment>& segments) {
  std::int64_t numel = 0;
  for (const auto& segment : segments) numel += segment.numel;
  const auto& own = state.owned(page);
  std::int64_t all_numel = 0;
  for (const auto& piece : state.layout()->segments(page, own.begin, own.begin + own.numel)) all_numel += piece.numel;
  if (numel < all_numel || numel == 0) return segments;
  const auto& last = segments.back();
  return {{0, last.offset + last.numel, {}}};
}

void update_page(const ModelState& state, const reduce::Reducer& reducer, Transit& transit, int page,
                 const UpdateInputs& inputs) {
  const Span span(state.pager().handle()->timeline.get(), SpanKind::kOperator, "update of a page", page);
  const auto& spec = state.layout()->pages()[page];
  const auto& own = state.owned(page);
  const Transit::Place place = transit.arrive(page);
  HeldState held(state.home(), page, Access::kWrite);
  auto* master = held.arrays().master;
  const optim::Arrays range{.master = master != nullptr ? master : reinterpret_cast<float*>(place.parameter),
                            .states = held.arrays().states,
                            .gradient = place.gradient,
                            .gradient_dtype = reducer.gradient(page).dtype,
                            .parameter = place.parameter,
                            .parameter_dtype = spec.dtype};
  std::vector<Segment> segments;
  for (const auto& piece : state.layout()->segments(page, own.begin, own.begin + own.numel)) {
    if (!inputs.received[piece.parameter]) continue;
    segments.push_back(
        {piece.page_offset - own.begin,
         piece.numel,
         {inputs.kind, inputs.groups[spec.group], inputs.steps[piece.parameter], inputs.gradient_scale}});
  }
  if (held.device().is_cpu()) {
    update_on_host(range, segments);
  } else {
    for (const auto& segment : segments) {
      update_on_device(range.from(segment.offset), segment.numel, segment.step, held.device());
    }
  }
  transit.leave(page, changed_runs(state, page, segments));
}

}  // namespace

GradientSum sum_gradients(const ModelState& state, const reduce::Reducer& reducer, int rank) {
  GradientSum sum;
  for (const auto& page : state.layout()->pages()) {
    const auto gradient = reducer.gradient(page.index);
    if (gradient.data == nullptr) continue;
    const auto& own = state.owned(page.index);
    const std::int64_t begin = rank * page.shard_numel;
    for (const auto& segment : state.layout()->segments(page.index, begin, begin + page.shard_numel)) {
      const auto* data = static_cast<const std::byte*>(gradient.data) +
                         (segment.page_offset - own.begin) * element_bytes(gradient.dtype);
      const double squares = segment_sum_of_squares(data, gradient.dtype, segment.numel, gradient.device);
      if (sum.overflow_parameter < 0 && !std::isfinite(squares)) sum.overflow_parameter = segment.parameter;
      sum.sum_of_squares += squares;
    }
  }
  return sum;
}

void update_pages(const ModelState& state, const reduce::Reducer& reducer, Transit& transit, std::vector<int> pages,
                  const UpdateInputs& inputs, const std::function<void(int page)>& updated) {
  c10::AutoGradMode no_grad(false);
  pages = state.home().begin_pass(std::move(pages));
  if (!pages.empty()) transit.fetch(pages.front());
  for (std::size_t i = 0; i < pages.size(); ++i) {
    if (i + 1 < pages.size()) transit.fetch(pages[i + 1]);
    update_page(state, reducer, transit, pages[i], inputs);
    updated(pages[i]);
  }
  state.home().end_pass();
}

}  // namespace zeropage::engine
