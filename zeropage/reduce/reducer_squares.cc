// The squares for the global norm, summed by whoever writes a gradient last; see Reducer::squares.
#include <algorithm>

#include "zeropage/reduce/reducer.h"

namespace zeropage::reduce {

void Reducer::forget_squares(int page) {
  auto& state = pages_[page];
  std::fill(state.squares.begin(), state.squares.end(), optim::SquareSum());
  state.squared_numel = 0;
  device_squares_.forget(page);
}

/// This rank's segments of a page whose shard is at `data`.
std::vector<optim::SquaredPiece> Reducer::squared_pieces(int page, const void* data, DType dtype) const {
  const std::int64_t first = communicator_->rank() * layout_->pages()[page].shard_numel;
  std::vector<optim::SquaredPiece> pieces;
  for (const auto& segment : pages_[page].segments) {
    if (pages_[page].keeps) {
      const at::Tensor& kept = kept_[segment.parameter];
      pieces.push_back({kept.defined() ? kept.const_data_ptr() : nullptr, kept.defined() ? kept.numel() : 0, dtype});
      continue;
    }
    const auto* begin = static_cast<const std::byte*>(data) + (segment.page_offset - first) * element_bytes(dtype);
    pieces.push_back({begin, segment.numel, dtype});
  }
  return pieces;
}

/// Of this rank's whole shard, as it will be stored, before `shard` is used for something else.
void Reducer::square_before_travel(int page, const at::Tensor& shard) {
  forget_squares(page);
  if (!policy_.squares) return;
  device_squares_.add(page, squared_pieces(page, shard.const_data_ptr(), dtype_of(shard.scalar_type())));
  device_squares_.start();
}

/// A sum that is on the device, and of which nobody has summed the squares.
void Reducer::square_where_it_is(int page) {
  const auto& state = pages_[page];
  if (!policy_.squares || !state.filled || state.result_device.is_cpu() || device_squares_.has(page)) return;
  device_squares_.add(page, squared_pieces(page, summed_shard(page), state.result_dtype));
}

/// Where this rank's shard of a sum in memory begins.
const std::byte* Reducer::summed_shard(int page) const {
  const auto& state = pages_[page];
  const std::int64_t before = policy_.whole_result ? communicator_->rank() * layout_->pages()[page].shard_numel : 0;
  return state.result + before * element_bytes(state.result_dtype);
}

/// Index of the segment of this rank's shard that has the element at `offset` of the page or, between segments, is the
/// next.
std::size_t Reducer::segment_at(int page, std::int64_t offset) const {
  const auto& segments = pages_[page].segments;
  const auto ends_before = [&](const auto& segment) { return segment.page_offset + segment.numel <= offset; };
  return static_cast<std::size_t>(std::partition_point(segments.begin(), segments.end(), ends_before) -
                                  segments.begin());
}

/// Elements [begin, begin + numel) of this rank's shard, which stand at `data`.
void Reducer::add_squares(int page, const std::byte* data, DType dtype, std::int64_t begin, std::int64_t numel) {
  if (!policy_.squares) return;
  auto& state = pages_[page];
  const std::int64_t first = communicator_->rank() * layout_->pages()[page].shard_numel + begin;
  const std::int64_t last = first + numel;
  for (std::size_t i = segment_at(page, first); i < state.segments.size(); ++i) {
    const auto& segment = state.segments[i];
    if (segment.page_offset >= last) break;
    const std::int64_t from = std::max(first, segment.page_offset);
    const std::int64_t to = std::min(last, segment.page_offset + segment.numel);
    state.squares[i].add(data + (from - first) * element_bytes(dtype), dtype, to - from);
  }
  state.squared_numel += numel;
}

/// For who is about to write this rank's whole shard to `data`.
comm::OnReduced Reducer::watch(int page, const std::byte* data, DType dtype) {
  forget_squares(page);
  if (!policy_.squares) return {};
  return [=, this](std::int64_t begin, std::int64_t numel) {
    if (begin == 0)
      forget_squares(page);  // those of a writer before, which was still at work when this one was announced
    add_squares(page, data + begin * element_bytes(dtype), dtype, begin, numel);
  };
}

/// For who is about to write a parameter's gradient, where it will not be written again (stores_sums): its squares
/// begin anew.
comm::OnReduced Reducer::watch_parameter(int parameter, const std::byte* data, DType dtype) {
  if (!policy_.squares) return {};
  const int page = layout_->page_of(parameter);
  auto& state = pages_[page];
  const std::size_t i = segment_at(page, layout_->offset_of(parameter));
  if (i == state.segments.size() || state.segments[i].parameter != parameter) return {};  // it has no elements
  auto& squares = state.squares[i];
  squares = optim::SquareSum();
  return [=, &squares](std::int64_t begin, std::int64_t numel) {
    squares.add(data + begin * element_bytes(dtype), dtype, numel);
  };
}

std::vector<double> Reducer::squares(int page) {
  const auto& state = pages_[page];
  if (!policy_.squares) return {};
  if (device_squares_.has(page)) return device_squares_.sums(page);
  if (!state.filled) return {};
  std::vector<double> sums;
  if (state.squared_numel < layout_->pages()[page].shard_numel) {  // written by who says nothing of it
    for (const auto& piece : squared_pieces(page, summed_shard(page), state.result_dtype)) {
      sums.push_back(optim::sum_of_squares(piece.data, piece.dtype, piece.numel));
    }
    return sums;
  }
  for (const auto& squares : state.squares) sums.push_back(squares.sum());
  return sums;
}

}  // namespace zeropage::reduce
