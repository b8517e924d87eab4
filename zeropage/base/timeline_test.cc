#include "zeropage/base/timeline.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

namespace zeropage {
namespace {

using nlohmann::json;

class TimelineFile : public ::testing::Test {
 protected:
  TimelineFile() { std::filesystem::remove(path_); }
  ~TimelineFile() override { std::filesystem::remove(path_); }

  TimelineOptions options(std::int64_t first_step, std::int64_t steps) const {
    TimelineOptions options;
    options.file = path_;
    options.rank = 2;
    options.first_step = first_step;
    options.steps = steps;
    return options;
  }

  /// The events of the file, except those that name processes.
  std::vector<json> events() const {
    std::ifstream file(path_);
    std::vector<json> found;
    for (const auto& event : json::parse(file)) {
      if (event["ph"] != "M") found.push_back(event);
    }
    return found;
  }

  std::string path_ = ::testing::TempDir() + "zeropage_timeline_test" + std::to_string(::getpid()) + ".json";
};

// Catches a trace of other steps than the requested ones.
TEST_F(TimelineFile, HoldsTheStepsThatWereAskedFor) {
  Timeline timeline(options(2, 2));
  for (const char* name : {"first", "second", "third", "fourth"}) {
    EXPECT_EQ(std::filesystem::exists(path_), name == std::string("fourth")) << name;
    { const Span span(&timeline, SpanKind::kForward, name); }
    timeline.end_step();
  }
  const auto found = events();
  ASSERT_EQ(found.size(), 2u);
  EXPECT_EQ(found[0]["name"], "second");
  EXPECT_EQ(found[1]["name"], "third");
  EXPECT_EQ(timeline.totals()[static_cast<int>(SpanKind::kForward)].count, 4);
}

// Catches names from models that break the JSON, and spans without their page, rank or length.
TEST_F(TimelineFile, SaysWhatWhereAndHowLong) {
  {
    Timeline timeline(options(1, 1));
    timeline.set_page_labels({"page 0 (a \"quoted\"\n\xff name)"});
    timeline.add(SpanKind::kOperator, "aten::mm", 0, Timeline::now_ns() - 5'000'000);
    timeline.add({SpanKind::kReduce, "reduce_scatter", "gradients", 64, 1'000, 3'500, 0});
  }
  const auto found = events();
  ASSERT_EQ(found.size(), 3u) << "one whole event, and begin and end of the transfer";
  EXPECT_EQ(found[0]["ph"], "X");
  EXPECT_EQ(found[0]["pid"], 2);
  EXPECT_NEAR(found[0]["dur"].get<double>(), 5000, 1000);
  EXPECT_TRUE(found[0]["args"]["page"].get<std::string>().starts_with("page 0 (a \"quoted\"\n"));
  EXPECT_EQ(found[1]["name"], "reduce_scatter: gradients");
  EXPECT_EQ(found[1]["args"]["bytes"], 64);
  EXPECT_EQ(found[1]["id"], found[2]["id"]);
  EXPECT_NEAR(found[2]["ts"].get<double>() - found[1]["ts"].get<double>(), 2.5, 1e-2);
}

// Catches times before the start of the shared clock that are not written as numbers.
TEST_F(TimelineFile, TimesMayBeNegative) {
  {
    Timeline timeline(options(1, 1));
    constexpr std::int64_t kYearsAgoNs = -200'000'000'000'000'000;
    timeline.add({SpanKind::kReduce, "reduce_scatter", "gradients", 64, kYearsAgoNs - 2'500, kYearsAgoNs, 0});
  }
  const auto found = events();
  ASSERT_EQ(found.size(), 2u);
  EXPECT_LT(found[0]["ts"].get<double>(), 0);
  EXPECT_NEAR(found[1]["ts"].get<double>() - found[0]["ts"].get<double>(), 2.5, 0.1);
}

// Catches a trace of a long step that fills the memory, or that does not say that it is incomplete.
TEST_F(TimelineFile, IsBounded) {
  auto bounded = options(1, 1);
  bounded.max_spans = 10;
  Timeline timeline(bounded);
  for (int i = 0; i < 25; ++i) timeline.add(SpanKind::kFault, "fault", -1, Timeline::now_ns());
  timeline.end_step();
  EXPECT_EQ(events().size(), 10u);
  std::ifstream file(path_);
  EXPECT_EQ(json::parse(file)[1]["args"]["labels"], "15 spans did not fit");
}

// Catches a trace file that cannot be written and ends the training.
TEST(Timeline, WarnsWhenTheFileCannotBeWritten) {
  TimelineOptions options;
  options.file = "/nowhere/trace.json";
  Timeline timeline(options);
  timeline.add(SpanKind::kStep, "step", -1, Timeline::now_ns());
  testing::internal::CaptureStderr();
  timeline.end_step();
  EXPECT_NE(testing::internal::GetCapturedStderr().find("/nowhere/trace.json"), std::string::npos);
}

TEST(Timeline, AddsUpTransfersOfAllThreads) {
  Timeline timeline({});
  std::int64_t heard = 0;
  timeline.on_transfer([&](const Transfer& transfer) { heard += transfer.bytes; });
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int j = 0; j < 100; ++j) timeline.add(SpanKind::kBackward, "backward", -1, 0);
    });
  }
  for (auto& thread : threads) thread.join();
  timeline.add({SpanKind::kGather, "all_gather", "page", 100, 0, 2'000'000, 1'000'000});
  timeline.add({SpanKind::kGather, "all_gather", "page", 100, 0, 4'000'000, 0});
  EXPECT_EQ(timeline.totals()[static_cast<int>(SpanKind::kBackward)].count, 400);
  EXPECT_EQ(heard, 200);
  const auto total = timeline.transfers().at({"all_gather", 100});
  EXPECT_EQ(total.whole.count, 2);
  EXPECT_EQ(total.waited_ns, 1'000'000);
  const std::string table = format_transfers(timeline.transfers());
  EXPECT_NE(table.find("3.000"), std::string::npos) << table;
  EXPECT_EQ(format_transfers({}), "");
}

}  // namespace
}  // namespace zeropage
