#include "zeropage/engine/second_update.h"

#include <algorithm>

namespace zeropage::engine {
namespace {

constexpr std::size_t kNoted = 8;

}  // namespace

/// According to pager and marks, which observe the operators.
bool SecondUpdate::is_written(int parameter) const {
  const int page = state_.layout()->page_of(parameter);
  auto& pager = state_.pager();
  if (pager.is_written(page)) return true;
  // A sharded parameter that was written and then evicted has a digest.
  return pager.paged(page) && state_.digest(parameter).front() != ' ';
}

SecondUpdate::Mark SecondUpdate::mark_of(int parameter) const {
  const at::Tensor& tensor = state_.tensors()[parameter];
  Mark mark{parameter, is_written(parameter), 0, {}};
  // The version of a sharded parameter is not used: the pager observes the operators that write it.
  if (state_.pager().paged(state_.layout()->page_of(parameter))) return mark;
  mark.version = tensor.is_inference() ? 0 : tensor.unsafeGetTensorImpl()->version_counter().current_version();
  if (!tensor.device().is_cpu() || !tensor.is_non_overlapping_and_dense()) return mark;
  const auto* bytes = static_cast<const std::uint8_t*>(tensor.const_data_ptr());
  const std::size_t all = tensor.nbytes();
  // Spread over the whole parameter, because most rows of an embedding may have no gradient. The lowest byte of an
  // element changes in all but one of 256 updates.
  const std::size_t element = tensor.itemsize();
  const std::size_t stride = std::max<std::size_t>(all / element / mark.values.size(), 1) * element;
  for (std::size_t i = 0; i < mark.values.size() && i * stride < all; ++i) mark.values[i] = bytes[i * stride];
  return mark;
}

void SecondUpdate::note() {
  marks_.clear();
  const auto& tensors = state_.tensors();
  const std::size_t apart = std::max<std::size_t>(tensors.size() / kNoted, 1);
  for (std::size_t i = 0; i < tensors.size() && marks_.size() < kNoted; i += apart) {
    const at::Tensor& tensor = tensors[i];
    if (!tensor.defined() || tensor.numel() == 0 || !tensor.grad().defined()) continue;
    if (!state_.layout()->parameters()[i].trainable) continue;
    marks_.push_back(mark_of(static_cast<int>(i)));
    if (marks_.back().written) marks_.pop_back();  // an earlier and a new write cannot be distinguished
  }
}

bool SecondUpdate::happened() {
  const auto changed = std::ranges::count_if(marks_, [&](const Mark& before) {
    if (!state_.tensors()[before.parameter].defined()) return false;
    const Mark now = mark_of(before.parameter);
    return now.written || now.version != before.version || now.values != before.values;
  });
  const bool most = 2 * changed > static_cast<std::ptrdiff_t>(marks_.size());
  marks_.clear();
  return most;
}

}  // namespace zeropage::engine
