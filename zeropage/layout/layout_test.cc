#include "zeropage/layout/layout.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <tuple>

#include "zeropage/base/checked.h"
#include "zeropage/base/error.h"

namespace zeropage::layout {
namespace {

ParameterSpec spec(std::string name, std::int64_t numel, DType dtype = DType::kFloat32, int group = 0) {
  ParameterSpec made;
  made.name = std::move(name);
  made.numel = numel;
  made.dtype = dtype;
  made.element_bytes = element_bytes(dtype);
  made.group = group;
  return made;
}

std::vector<ParameterSpec> random_specs(std::mt19937& random) {
  const auto pick = [&](int from, int to) { return std::uniform_int_distribution<int>(from, to)(random); };
  const DType dtypes[] = {DType::kFloat32, DType::kBFloat16, DType::kOther};
  std::vector<ParameterSpec> specs(pick(0, 40));
  for (std::size_t i = 0; i < specs.size(); ++i) {
    const int size_class = pick(0, 5);
    const int largest[] = {0, 8, 300, 300, 300, 5000};
    const std::int64_t numel = pick(size_class == 0 ? 0 : 1, largest[size_class]);
    specs[i] = spec("p" + std::to_string(i), numel, dtypes[pick(0, 2)], pick(-1, 1));
    if (specs[i].dtype == DType::kOther) specs[i].element_bytes = pick(1, 2) * 4;
    specs[i].trainable = pick(0, 3) != 0;
    specs[i].persistent = pick(0, 3) == 0;
  }
  return specs;
}

LayoutOptions random_options(std::mt19937& random, int world_size) {
  const auto pick = [&](int from, int to) { return std::uniform_int_distribution<int>(from, to)(random); };
  return {world_size, pick(1, 2000), pick(0, 1) ? 1 : pick(1, 64), pick(0, 1) ? 1 : pick(1, 128)};
}

auto key(const ParameterSpec& s) { return std::tuple(s.dtype, s.element_bytes, s.group, s.trainable, s.persistent); }
auto key(const Page& p) { return std::tuple(p.dtype, p.element_bytes, p.group, p.trainable, p.persistent); }

void expect_pages_hold_all_parameters(const Layout& layout) {
  const LayoutOptions& options = layout.options();
  std::vector<int> seen(layout.parameters().size(), 0);
  int last_first = -1;
  for (const Page& page : layout.pages()) {
    ASSERT_FALSE(page.placements.empty());
    EXPECT_EQ(&page - layout.pages().data(), page.index);
    EXPECT_GT(page.placements.front().parameter, last_first) << "pages are not numbered by their first parameter";
    last_first = page.placements.front().parameter;
    std::int64_t end = 0;
    std::int64_t largest = 0;
    for (const Placement& placement : page.placements) {
      const ParameterSpec& s = layout.parameters()[placement.parameter];
      EXPECT_EQ(key(s), key(page));
      EXPECT_EQ(placement.numel, s.numel);
      EXPECT_GE(placement.offset, end) << "overlap";
      EXPECT_EQ(placement.offset % options.parameter_alignment_numel, 0);
      EXPECT_EQ(layout.page_of(placement.parameter), page.index);
      EXPECT_EQ(layout.offset_of(placement.parameter), placement.offset);
      end = placement.offset + placement.numel;
      largest = std::max(largest, s.numel);
      ++seen[placement.parameter];
    }
    EXPECT_EQ(page.used_numel, end);
    EXPECT_LE(page.used_numel, std::max(options.page_numel, largest));
    EXPECT_TRUE(largest <= options.page_numel || page.placements.size() == 1)
        << "an oversized parameter shares its page";
    EXPECT_GT(page.shard_numel, 0);
    EXPECT_EQ(page.shard_numel % options.shard_alignment_numel, 0);
    EXPECT_EQ(page.padded_numel, page.shard_numel * options.world_size);
    EXPECT_GE(page.padded_numel, page.used_numel);
    EXPECT_LT(page.shard_numel, ceil_div(page.used_numel, options.world_size) + options.shard_alignment_numel + 1);
  }
  for (int count : seen) EXPECT_EQ(count, 1);
}

void expect_shards_partition_parameters(const Layout& layout) {
  for (const Page& page : layout.pages()) {
    std::vector<std::int64_t> next(layout.parameters().size(), 0);
    std::int64_t position = 0;
    for (int rank = 0; rank < layout.options().world_size; ++rank) {
      for (const Segment& segment : layout.shard_segments(page.index, rank)) {
        EXPECT_GT(segment.numel, 0);
        EXPECT_GE(segment.page_offset, std::max(position, rank * page.shard_numel));
        position = segment.page_offset + segment.numel;
        EXPECT_LE(position, (rank + 1) * page.shard_numel);
        EXPECT_EQ(layout.page_of(segment.parameter), page.index);
        EXPECT_EQ(segment.page_offset, layout.offset_of(segment.parameter) + segment.parameter_offset);
        EXPECT_EQ(segment.parameter_offset, next[segment.parameter]) << "gap or repetition";
        next[segment.parameter] += segment.numel;
      }
    }
    for (const Placement& placement : page.placements) EXPECT_EQ(next[placement.parameter], placement.numel);
  }
}

// Would catch a parameter that is lost, doubled, overlapped, misaligned, in a page of another kind, or cut wrongly.
TEST(Layout, PropertiesHoldForRandomModels) {
  std::mt19937 random(7);
  for (int world_size = 1; world_size <= 9; ++world_size) {
    for (int round = 0; round < 40; ++round) {
      const Layout layout(random_specs(random), random_options(random, world_size));
      expect_pages_hold_all_parameters(layout);
      expect_shards_partition_parameters(layout);
      if (HasFailure()) FAIL() << "world " << world_size << " round " << round << "\n" << layout.describe();
    }
  }
}

// Would catch segments() that drops or repeats elements at some borders: compared with a loop over every element.
TEST(Layout, SegmentsOfAnyRangeEqualTheElementwiseAnswer) {
  std::vector<ParameterSpec> specs = {spec("a", 5), spec("b", 0), spec("c", 3), spec("d", 0), spec("e", 9)};
  const Layout layout(specs, {2, 100, 4, 8});
  const Page& page = layout.pages().at(0);
  for (std::int64_t begin = 0; begin <= page.padded_numel; ++begin) {
    for (std::int64_t end = begin; end <= page.padded_numel; ++end) {
      std::vector<int> owner(page.padded_numel, -1);
      for (const Segment& segment : layout.segments(0, begin, end)) {
        for (std::int64_t i = 0; i < segment.numel; ++i) owner[segment.page_offset + i] = segment.parameter;
      }
      for (std::int64_t i = 0; i < page.padded_numel; ++i) {
        int expected = -1;
        for (const Placement& p : page.placements) {
          if (i >= begin && i < end && i >= p.offset && i < p.offset + p.numel) expected = p.parameter;
        }
        ASSERT_EQ(owner[i], expected) << begin << " " << end << " " << i;
      }
    }
  }
}

// Would catch a change of the packing rule, which changes what every checkpoint and every rank expects.
TEST(Layout, PacksInOrderAndClosesFullPages) {
  const Layout layout(
      {spec("a", 60), spec("h", 10, DType::kBFloat16), spec("b", 30), spec("c", 20), spec("big", 500), spec("d", 4)},
      {2, 100, 16, 8});
  std::vector<int> pages;
  for (int i = 0; i < 6; ++i) pages.push_back(layout.page_of(i));
  EXPECT_EQ(pages, (std::vector<int>{0, 1, 0, 2, 3, 4}));
  EXPECT_EQ(layout.offset_of(2), 64);
  EXPECT_EQ(layout.pages()[0].used_numel, 94);
  EXPECT_EQ(layout.pages()[0].shard_numel, 48);
  EXPECT_EQ(layout.pages()[0].padded_bytes(), 2 * 48 * 4);
  EXPECT_EQ(layout.pages()[1].shard_bytes(), 8 * 2);
}

TEST(Layout, EmptyModelAndEmptyParameters) {
  EXPECT_TRUE(Layout({}, {}).pages().empty());
  const Layout layout({spec("none", 0)}, {3, 10, 4, 8});
  EXPECT_EQ(layout.pages().at(0).shard_numel, 8);
  EXPECT_TRUE(layout.shard_segments(0, 2).empty());
}

// Would catch a difference between ranks that this text does not show: ranks compare it.
TEST(Layout, DescribeShowsEveryDifference) {
  const auto describe = [](auto change) {
    std::vector<ParameterSpec> specs = {spec("a", 60), spec("b", 30)};
    change(specs[1]);
    return Layout(specs, {2, 1000, 16, 8}).describe();
  };
  const std::string same = describe([](ParameterSpec&) {});
  EXPECT_EQ(std::count(same.begin(), same.end(), '\n'), 2);
  EXPECT_NE(same, describe([](ParameterSpec& s) { s.name = "c"; }));
  EXPECT_NE(same, describe([](ParameterSpec& s) { s.numel = 31; }));
  EXPECT_NE(same, describe([](ParameterSpec& s) { s.dtype = DType::kFloat64, s.element_bytes = 8; }));
  EXPECT_NE(same, describe([](ParameterSpec& s) { s.group = 1; }));
  EXPECT_NE(same, describe([](ParameterSpec& s) { s.trainable = false; }));
  EXPECT_NE(same, describe([](ParameterSpec& s) { s.persistent = true; }));
}

TEST(Layout, NonsenseIsAnErrorThatNamesIt) {
  const auto message = [](std::vector<ParameterSpec> specs, LayoutOptions options) -> std::string {
    try {
      Layout(std::move(specs), options);
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "no error";
  };
  EXPECT_NE(message({}, {0, 1, 1, 1}).find("world_size"), std::string::npos);
  EXPECT_NE(message({}, {1, 0, 1, 1}).find("page_numel"), std::string::npos);
  EXPECT_NE(message({spec("wte", -1)}, {}).find("wte"), std::string::npos);
  ParameterSpec odd = spec("odd", 1);
  odd.element_bytes = 2;
  EXPECT_NE(message({odd}, {}).find("odd"), std::string::npos);
  EXPECT_NE(message({spec("huge", INT64_MAX - 1)}, {}).find("page 0"), std::string::npos);
  EXPECT_NE(message({spec("a", 1), spec("huge", INT64_MAX - 1)}, {}).find("huge"), std::string::npos);
  EXPECT_THROW(Layout({spec("a", 1)}, {}).segments(1, 0, 1), UsageError);
  EXPECT_THROW(Layout({spec("a", 1)}, {}).segments(0, 0, 1 << 20), UsageError);
  EXPECT_THROW(Layout({spec("a", 1)}, {}).shard_segments(0, 1), UsageError);
}

TEST(Layout, DefaultPageIsAboutA32ndOfTheModel) {
  for (const bool networked : {false, true}) {
    EXPECT_EQ(default_page_numel(0, networked), 1 << 16);
    EXPECT_EQ(default_page_numel(1000, networked), 1 << 16);
    EXPECT_EQ(default_page_numel(64 << 20, networked), 1 << 21);
    EXPECT_EQ(default_page_numel(1LL << 40, networked), 1 << 23);
  }
  EXPECT_EQ(default_page_numel(10 << 20, false), 10 << 15);
  EXPECT_EQ(default_page_numel(10 << 20, true), 1 << 20);
  EXPECT_EQ(default_page_numel(2 << 20, true), 1 << 18);
}

}  // namespace
}  // namespace zeropage::layout
