#include "zeropage/planner/simulate.h"

#include <gtest/gtest.h>

#include "zeropage/base/error.h"

namespace zeropage::planner {
namespace {

Request request_of(const char* count, int hosts) {
  Request request;
  request.model = model_of_count(count, parse_count(count));
  request.hardware = hardware_preset("H100");
  request.devices_per_host = 8;
  request.hosts = hosts;
  return request;
}

// Catches missing numbers of hosts, and a batch that does not grow with them.
TEST(Simulate, WeakScalingKeepsEachRanksWork) {
  const auto points = simulate(request_of("7B", 12), {});
  ASSERT_EQ(points.size(), 5u);
  EXPECT_EQ(points.back().hosts, 12);
  for (const auto& point : points) EXPECT_EQ(point.samples_per_step, point.ranks);
  for (std::size_t i = 1; i < points.size(); ++i) {
    EXPECT_GE(points[i].time.step_s, points[i - 1].time.step_s * 0.99) << "more ranks move no fewer bytes each";
    EXPECT_GT(points[i].samples_per_s(), points[i - 1].samples_per_s());
  }
}

// Catches a batch that differs between points, so that the curve compares different trainings.
TEST(Simulate, StrongScalingSharesTheBatch) {
  const auto points = simulate(request_of("7B", 16), {.global_batch = 64});
  ASSERT_EQ(points.size(), 4u) << "16 hosts have more ranks than samples";
  for (const auto& point : points) EXPECT_EQ(point.samples_per_step, 64);
  EXPECT_LT(points.back().time.step_s, points.front().time.step_s);
  EXPECT_THROW(simulate(request_of("7B", 2), {.global_batch = 3}), ConfigError);
}

// Catches wrong results for the models of ZeRO-Infinity: some fit on no realistic number of devices, others fit.
TEST(Simulate, TrillionsOfParameters) {
  const auto points = simulate(request_of("1T", 512), {});
  ASSERT_TRUE(points.front().strategy.has_value());
  EXPECT_EQ(points.front().strategy->parameters, StateMemory::kDisk) << "all of it, on the drives of one host";
  ASSERT_TRUE(points.back().strategy.has_value());
  EXPECT_EQ(points.back().strategy->stage, 3);
  EXPECT_FALSE(points.back().strategy->offloads());
  const auto larger = simulate(request_of("10T", 512), {});
  EXPECT_FALSE(larger.back().strategy.has_value())
      << "the gradients of three of its matrices fill a device, on however many ranks";
  EXPECT_NE(format_scaling(request_of("10T", 512), larger).find("nothing fits"), std::string::npos);
  const std::string text = format_scaling(request_of("1T", 512), points);
  EXPECT_NE(text.find("4096"), std::string::npos);
}

// Catches times without a named device.
TEST(Simulate, NeedsADevice) {
  Request request = request_of("7B", 2);
  request.hardware.reset();
  EXPECT_THROW(simulate(request, {}), ConfigError);
}

// Catches a curve that changes the stage although one was requested, and a single host with one point only.
TEST(Simulate, OneStageOnTheDevicesOfOneHost) {
  const auto points = simulate(request_of("7B", 1), {.stage = 3});
  ASSERT_EQ(points.size(), 4u);
  EXPECT_FALSE(points[0].strategy.has_value()) << "one device is too small";
  for (std::size_t i = 2; i < points.size(); ++i) {
    EXPECT_EQ(points[i].ranks, 1 << i);
    EXPECT_EQ(points[i].strategy->stage, 3);
  }
  EXPECT_NE(scaling_json(request_of("7B", 1), points).find("\"step_s\""), std::string::npos);
  EXPECT_THROW(simulate(request_of("7B", 1), {.stage = 4}), ConfigError);
}

// Catches thousands of ranks that exchange pages as fast as two, whatever the number of hops.
TEST(Simulate, HopsTakeTime) {
  Request request = request_of("1T", 512);
  const double with_latency = simulate(request, {.stage = 3}).back().time.step_s;
  request.hardware->device_latency_s = request.hardware->network_latency_s = 0;
  const double without = simulate(request, {.stage = 3}).back().time.step_s;
  EXPECT_GT(with_latency, 1.2 * without);
}

}  // namespace
}  // namespace zeropage::planner
