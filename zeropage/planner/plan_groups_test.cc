// Plans of hybrid sharding (zeropage.shard_ranks).
#include <gtest/gtest.h>

#include <string>

#include "zeropage/base/error.h"
#include "zeropage/planner/make_plan.h"
#include "zeropage/planner/memory_model.h"
#include "zeropage/planner/time_model.h"

namespace zeropage::planner {
namespace {

/// 7 billion parameters on hosts with 8 devices each.
Request planned(int hosts) {
  Request request;
  request.model = read_model("7B");
  request.devices_per_host = 8;
  request.hosts = hosts;
  request.hardware = read_hardware("H100");
  return request;
}

bool says(const std::string& text, const std::string& piece) { return text.find(piece) != std::string::npos; }

// Catches groups whose state is divided over all ranks, a stage 0 with groups, and keys that the engine would refuse.
TEST(Plan, GroupsDivideStateAmongTheirRanks) {
  const Request plain = planned(2);
  Request grouped = plain;
  grouped.shard_ranks = 8;
  EXPECT_EQ(estimate_memory(grouped, {3}).state.total(), estimate_memory(planned(1), {3}).state.total());
  EXPECT_EQ(estimate_memory(grouped, {0}).state.total(), estimate_memory(plain, {0}).state.total());
  const double slow_network = grouped.hardware->network_rate / 1000;
  Request slow = grouped;
  slow.hardware->network_rate = slow_network;
  Request slow_plain = plain;
  slow_plain.hardware->network_rate = slow_network;
  EXPECT_LT(estimate_time(slow, {3}, false).step_s, estimate_time(slow_plain, {3}, false).step_s);
  for (const Row& row : make_plan(grouped).rows) {
    EXPECT_TRUE(row.available) << row.config;
    EXPECT_EQ(says(row.config, R"("shard_ranks": 8)"), row.strategy.stage > 0);
  }
  grouped.hardware->is_cpu = true;
  const Plan plan = make_plan(grouped);
  for (const Row& row : plan.rows) EXPECT_TRUE(row.available) << row.config;
  EXPECT_TRUE(says(format_plan(plan), "each group sends 28.0 GB on average per reduction"));
  for (const int wrong : {1, 3, 16, -2}) {
    grouped.shard_ranks = wrong;
    EXPECT_THROW(make_plan(grouped), ConfigError) << wrong;
  }
  grouped.shard_ranks = 8;
  grouped.quantized_gradients = true;
  EXPECT_THROW(make_plan(grouped), ConfigError);
}

}  // namespace
}  // namespace zeropage::planner
