// The squares for the global norm: where the squares of each sum are added; see NormAccumulator.
#include <utility>

#include "zeropage/comm/c10d/c10d_buffers.h"
#include "zeropage/reduce/reducer.h"

namespace zeropage::reduce {

/// This rank's segments of a page's sum.
std::vector<optim::SquaredPiece> Reducer::squared_pieces(int page) const {
  const DType dtype = pages_[page].result_dtype;
  if (!pages_[page].keeps) return norms_.pieces(page, summed_shard(page), dtype);
  std::vector<optim::SquaredPiece> pieces;
  for (const auto& segment : norms_.segments(page)) {
    const at::Tensor& kept = kept_[segment.parameter];
    if (kept.defined()) comm::note_use(kept);
    pieces.push_back({kept.defined() ? kept.const_data_ptr() : nullptr, kept.defined() ? kept.numel() : 0, dtype});
  }
  return pieces;
}

/// Squares this rank's whole shard [shard_numel], as it will be stored, before the memory of `shard` is reused.
void Reducer::square_before_copy(int page, const at::Tensor& shard) {
  const DType dtype = dtype_of(shard.scalar_type());
  norms_.add_on_device(page, norms_.pieces(page, shard.const_data_ptr(), dtype), /*at_once=*/true);
}

/// Squares a sum on the device whose squares have not been added.
void Reducer::square_where_it_is(int page) {
  const auto& state = pages_[page];
  if (!policy_.squares || !state.has_sum() || state.result_device.is_cpu() || norms_.is_on_device(page)) return;
  norms_.add_on_device(page, squared_pieces(page), /*at_once=*/false);
}

/// The begin of this rank's shard of a sum in memory.
const std::byte* Reducer::summed_shard(int page) const {
  const auto& state = pages_[page];
  const std::int64_t before = policy_.whole_result ? communicator_->rank() * layout_->pages()[page].shard_numel : 0;
  return state.result + before * element_bytes(state.result_dtype);
}

std::vector<double> Reducer::squares(int page) {
  if (!norms_.is_on_device(page) && !pages_[page].has_sum()) return {};
  return norms_.sums(page, [&] { return squared_pieces(page); });
}

}  // namespace zeropage::reduce
