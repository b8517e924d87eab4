/// \file
/// For tests: compares squares that were summed during the reduction with a pass over the gradient.
#pragma once

#include <gtest/gtest.h>

#include "zeropage/optim/norm.h"
#include "zeropage/reduce/reducer.h"

namespace zeropage::reduce {

/// Expects of every page with a gradient that its squares are available without reading it again, and that they equal
/// those of the stored sum bit for bit (or within `relative_tolerance`).
inline void expect_squares(Reducer& reducer, const layout::Layout& layout, const ReducePolicy& policy, int rank,
                           double relative_tolerance = 0.0) {
  for (const auto& page : layout.pages()) {
    const auto gradient = reducer.gradient(page.index);
    const auto squares = reducer.squares(page.index);
    const auto segments = layout.shard_segments(page.index, rank);
    for (std::size_t i = 0; i < squares.size() && reducer.keeps(page.index); ++i) {
      const at::Tensor& kept = reducer.kept(segments[i].parameter);
      EXPECT_EQ(squares[i],
                kept.defined() ? optim::sum_of_squares(kept.const_data_ptr(), gradient.dtype, kept.numel()) : 0);
    }
    if (gradient.data == nullptr) continue;
    ASSERT_EQ(squares.size(), segments.size()) << "page " << page.index;
    const std::int64_t begin = policy.whole_result ? 0 : rank * page.shard_numel;
    for (std::size_t i = 0; i < segments.size(); ++i) {
      const auto* data = static_cast<const std::byte*>(gradient.data) +
                         (segments[i].page_offset - begin) * element_bytes(gradient.dtype);
      const double expected = optim::sum_of_squares(data, gradient.dtype, segments[i].numel);
      EXPECT_NEAR(squares[i], expected, relative_tolerance * expected) << "page " << page.index;
    }
  }
}

}  // namespace zeropage::reduce
