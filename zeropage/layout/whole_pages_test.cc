#include "zeropage/layout/whole_pages.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>

namespace zeropage::layout {
namespace {

// Would catch pages of only one or two matrices, most of them divided over two ranks; and frames that hold a large part
// of a large model.
TEST(WholePages, HoldSeveralParametersOfEachRank) {
  EXPECT_EQ(page_numel_for_whole_parameters(100'000'000, 1'000'000, 2, false), 8'000'000);
  EXPECT_EQ(page_numel_for_whole_parameters(10'000'000, 400'000, 2, true), 2'500'000);
  EXPECT_EQ(page_numel_for_whole_parameters(7'000'000'000, 45'000'000, 8, false), 1'440'000'000);
  EXPECT_EQ(page_numel_for_whole_parameters(7'000'000'000, 45'000'000, 8, true), 437'500'000);
  EXPECT_EQ(page_numel_for_whole_parameters(124'000'000, 2'400'000, 16, false), 76'800'000);
  EXPECT_EQ(page_numel_for_whole_parameters(100'000'000, 1'000, 2, false), 0);
  EXPECT_EQ(page_numel_for_whole_parameters(100'000'000, 1'000'000, 1, false), 0);
}

std::vector<ParameterSpec> transformer(int blocks, std::int64_t width) {
  std::vector<ParameterSpec> parameters;
  for (int block = 0; block < blocks; ++block) {
    for (const std::int64_t times : {3, 1, 4, 4}) {
      ParameterSpec spec;
      spec.name = "block" + std::to_string(block) + ".weight" + std::to_string(parameters.size());
      spec.numel = times * width * width;
      spec.whole = true;
      parameters.push_back(spec);
    }
  }
  return parameters;
}

int divided(const Layout& layout) {
  std::vector<int> pieces(layout.parameters().size());
  for (const Page& page : layout.pages()) {
    for (int rank = 0; rank < layout.options().world_size; ++rank) {
      for (const Segment& segment : layout.shard_segments(page.index, rank)) ++pieces[segment.parameter];
    }
  }
  return static_cast<int>(std::ranges::count_if(pieces, [](int count) { return count > 1; }));
}

// Would catch matrices that are sent to their owners and back in each update, and memory that is mostly padding.
TEST(WholePages, OfATransformerDivideFewParameters) {
  constexpr std::int64_t kWidth = 512;
  const auto parameters = transformer(12, kWidth);
  const std::int64_t total = 12 * 12 * kWidth * kWidth;
  for (const int world_size : {2, 3, 4, 8}) {
    LayoutOptions options{.world_size = world_size};
    options.page_numel = page_numel_for_whole_parameters(total, 4 * kWidth * kWidth, world_size, false);
    const Layout layout(parameters, options);
    EXPECT_LE(divided(layout), world_size == 8 ? 4 : 0) << world_size;  // the last page has the rest
    std::int64_t padded = 0;
    for (const Page& page : layout.pages()) padded += page.padded_numel;
    EXPECT_LE(padded, total + total / 20) << world_size;
    EXPECT_GE(layout.pages().size(), 2U) << world_size;
  }
}

// Would catch positions that overlap or are beyond the page, also of empty parameters and of sizes that do not fit.
TEST(WholePages, PlacesAreInOrderAndDisjoint) {
  auto parameters = transformer(3, 40);
  for (const std::int64_t numel : {0, 1, 65, 0, 9'000, 0}) {
    ParameterSpec spec;
    spec.name = "odd" + std::to_string(parameters.size());
    spec.numel = numel;
    spec.whole = true;
    parameters.insert(parameters.begin() + static_cast<std::ptrdiff_t>(parameters.size() / 2), spec);
  }
  for (const int world_size : {1, 2, 5, 64}) {
    LayoutOptions options{.world_size = world_size, .page_numel = 30'000};
    options.shard_alignment_numel = 128;
    const Layout layout(parameters, options);
    std::size_t placed = 0;
    int first_of_last_page = -1;
    for (const Page& page : layout.pages()) {
      std::int64_t end = 0;
      int first = static_cast<int>(parameters.size());
      for (const Placement& place : page.placements) {
        EXPECT_GE(place.offset, end);
        EXPECT_EQ(place.offset, layout.offset_of(place.parameter));
        EXPECT_EQ(page.index, layout.page_of(place.parameter));
        end = place.offset + place.numel;
        first = std::min(first, place.parameter);
      }
      EXPECT_LE(end, page.used_numel);
      EXPECT_LE(page.used_numel, page.padded_numel);
      EXPECT_GT(first, first_of_last_page);
      first_of_last_page = first;
      placed += page.placements.size();
    }
    EXPECT_EQ(placed, parameters.size());
  }
}

// Would catch a page of one large parameter for which every rank needs as much memory as the owner.
TEST(WholePages, WithMuchPaddingAreDivided) {
  const LayoutOptions options{.world_size = 4};
  EXPECT_FALSE(pack_into_shards({1'000'000}, options));
  EXPECT_FALSE(pack_into_shards({1'000'000, 1'000'000, 1'000'000, 500'000}, options));
  const auto shards = pack_into_shards({900'000, 1'000'000, 1'000'000, 1'000'000}, options);
  ASSERT_TRUE(shards);
  EXPECT_EQ(shards->offsets[0], 3 * shards->shard_numel);
  ParameterSpec large;
  large.numel = 1'000'000;
  large.whole = true;
  EXPECT_EQ(Layout({large}, options).pages()[0].shard_numel, 251'904);
}

}  // namespace
}  // namespace zeropage::layout
