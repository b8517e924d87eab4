#include "zeropage/reduce/norm_accumulator.h"

#include <algorithm>
#include <utility>

namespace zeropage::reduce {

NormAccumulator::NormAccumulator(std::shared_ptr<const layout::Layout> layout, comm::Communicator& communicator,
                                 c10::Device device, bool enabled)
    : layout_(std::move(layout)),
      rank_(communicator.rank()),
      enabled_(enabled),
      pages_(layout_->pages().size()),
      device_(device, communicator, pages_.size()) {}

void NormAccumulator::grow() {
  pages_.resize(layout_->pages().size());
  device_.grow(pages_.size());
}

void NormAccumulator::add_page(int page) {
  pages_[page].segments = layout_->shard_segments(page, rank_);
  pages_[page].squares.resize(pages_[page].segments.size());
}

void NormAccumulator::forget(int page) {
  std::ranges::fill(pages_[page].squares, optim::SquareSum());
  pages_[page].squared_numel = 0;
  device_.forget(page);
}

std::int64_t NormAccumulator::shard_begin(int page) const { return rank_ * layout_->pages()[page].shard_numel; }

/// Index of the segment with the element at `offset` of the page or, between segments, of the next one.
std::size_t NormAccumulator::segment_at(int page, std::int64_t offset) const {
  const auto& segments = pages_[page].segments;
  const auto ends_before = [&](const auto& segment) { return segment.page_offset + segment.numel <= offset; };
  return static_cast<std::size_t>(std::partition_point(segments.begin(), segments.end(), ends_before) -
                                  segments.begin());
}

void NormAccumulator::add(int page, const std::byte* data, DType dtype, std::int64_t begin, std::int64_t numel) {
  if (!enabled_) return;
  auto& state = pages_[page];
  const std::int64_t first = shard_begin(page) + begin;
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

comm::OnReduced NormAccumulator::watch(int page, const std::byte* data, DType dtype) {
  forget(page);
  if (!enabled_) return {};
  return [=, this](std::int64_t begin, std::int64_t numel) {
    // An earlier writer may still have been writing when this one was announced: its squares are discarded, too.
    if (begin == 0) forget(page);
    add(page, data + begin * element_bytes(dtype), dtype, begin, numel);
  };
}

comm::OnReduced NormAccumulator::watch_parameter(int parameter, const std::byte* data, DType dtype) {
  if (!enabled_) return {};
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

void NormAccumulator::complete(int page) { pages_[page].squared_numel = layout_->pages()[page].shard_numel; }

std::vector<optim::SquaredPiece> NormAccumulator::pieces(int page, const void* data, DType dtype) const {
  std::vector<optim::SquaredPiece> pieces;
  for (const auto& segment : pages_[page].segments) {
    const std::int64_t offset = segment.page_offset - shard_begin(page);
    pieces.push_back({static_cast<const std::byte*>(data) + offset * element_bytes(dtype), segment.numel, dtype});
  }
  return pieces;
}

void NormAccumulator::add_on_device(int page, std::vector<optim::SquaredPiece> pieces, bool at_once) {
  forget(page);
  if (!enabled_) return;
  device_.add(page, std::move(pieces));
  if (at_once) device_.start();
}

std::vector<double> NormAccumulator::sums(int page,
                                          const std::function<std::vector<optim::SquaredPiece>()>& read_again) {
  if (!enabled_) return {};
  if (is_on_device(page)) return device_.sums(page);
  const auto& state = pages_[page];
  std::vector<double> sums;
  if (state.squared_numel < layout_->pages()[page].shard_numel) {
    for (const auto& piece : read_again()) {
      sums.push_back(optim::sum_of_squares(piece.data, piece.dtype, piece.numel));
    }
    return sums;
  }
  for (const auto& squares : state.squares) sums.push_back(squares.sum());
  return sums;
}

}  // namespace zeropage::reduce
