// The squares for the global norm, summed by whoever writes a gradient last; see Reducer::squares.
#include <algorithm>

#include "zeropage/reduce/reducer.h"

namespace zeropage::reduce {

void Reducer::forget_squares(int page) {
  auto& state = pages_[page];
  std::fill(state.squares.begin(), state.squares.end(), optim::SquareSum());
  state.squared_numel = 0;
}

/// Elements [begin, begin + numel) of this rank's shard, which stand at `data`.
void Reducer::add_squares(int page, const std::byte* data, DType dtype, std::int64_t begin, std::int64_t numel) {
  auto& state = pages_[page];
  const std::int64_t first = communicator_->rank() * layout_->pages()[page].shard_numel + begin;
  const std::int64_t last = first + numel;
  auto segment = std::partition_point(state.segments.begin(), state.segments.end(),
                                      [&](const auto& s) { return s.page_offset + s.numel <= first; });
  for (; segment != state.segments.end() && segment->page_offset < last; ++segment) {
    const std::int64_t from = std::max(first, segment->page_offset);
    const std::int64_t to = std::min(last, segment->page_offset + segment->numel);
    state.squares[static_cast<std::size_t>(segment - state.segments.begin())].add(
        data + (from - first) * element_bytes(dtype), dtype, to - from);
  }
  state.squared_numel += numel;
}

/// For who is about to write this rank's whole shard to `data`.
comm::Written Reducer::watch(int page, const std::byte* data, DType dtype) {
  forget_squares(page);
  return [=, this](std::int64_t begin, std::int64_t numel) {
    if (begin == 0)
      forget_squares(page);  // those of a writer before, which was still at work when this one was announced
    add_squares(page, data + begin * element_bytes(dtype), dtype, begin, numel);
  };
}

/// For who is about to write a parameter's gradient, where it will not be written again (stores_sums): its squares begin anew.
comm::Written Reducer::watch_parameter(int parameter, const std::byte* data, DType dtype) {
  auto& state = pages_[layout_->page_of(parameter)];
  const auto segment = std::find_if(state.segments.begin(), state.segments.end(),
                                    [&](const auto& s) { return s.parameter == parameter; });
  if (segment == state.segments.end()) return {};  // it has no elements
  auto& squares = state.squares[static_cast<std::size_t>(segment - state.segments.begin())];
  squares = optim::SquareSum();
  return [=, &squares](std::int64_t begin, std::int64_t numel) {
    squares.add(data + begin * element_bytes(dtype), dtype, numel);
  };
}

std::vector<double> Reducer::squares(int page) const {
  const auto& state = pages_[page];
  if (state.squared_numel < layout_->pages()[page].shard_numel) return {};
  std::vector<double> sums;
  for (const auto& squares : state.squares) sums.push_back(squares.sum());
  return sums;
}

}  // namespace zeropage::reduce
