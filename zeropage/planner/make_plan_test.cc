#include "zeropage/planner/make_plan.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include <nlohmann/json.hpp>

#include "zeropage/base/error.h"
#include "zeropage/config/effective.h"
#include "zeropage/planner/memory_model.h"
#include "zeropage/planner/recommend.h"
#include "zeropage/planner/time_model.h"

namespace zeropage::planner {
namespace {

Request request(const std::string& model, int devices, const std::string& device = "", int hosts = 1) {
  Request request;
  request.model = read_model(model);
  request.devices_per_host = devices;
  request.hosts = hosts;
  if (!device.empty()) request.hardware = hardware_preset(device);
  return request;
}

const Row& recommended(const Plan& plan) { return plan.rows.at(plan.recommendation.row.value()); }

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

TEST(Plan, SevenBillionOnFourPrintsTheKnownTable) {
  const std::string text = format_plan(make_plan(request("7B", 4)));
  EXPECT_TRUE(contains(text, "DDP         112 GB")) << text;
  EXPECT_TRUE(contains(text, "stage 1    49.0 GB")) << text;
  EXPECT_TRUE(contains(text, "stage 2    38.5 GB")) << text;
  EXPECT_TRUE(contains(text, "stage 3    28.0 GB  and gathered parameters")) << text;
  EXPECT_TRUE(contains(text, "7B: 7,000,000,000 parameters")) << text;
}

// The rows count what the engine holds: gradient shards in fp32.
TEST(Plan, RowsFollowTheFormulaOfTheEngine) {
  const Plan plan = make_plan(request("7B", 4));
  for (const Row& row : plan.rows) {
    if (row.strategy.offloads()) continue;
    const formula::StateBytes expected =
        formula::model_state_bytes({7'000'000'000, 0, 0}, {row.strategy.stage, 4, config::Precision::kBf16});
    EXPECT_EQ(row.memory.state, expected);
    EXPECT_EQ(row.memory.host, 0);
    EXPECT_EQ(row.plain.device_bytes,
              expected.total() + row.memory.frames + row.memory.buckets + row.plain.activations);
  }
}

// Catches bytes that are lost or counted twice when state is offloaded. The host also has the undo log.
TEST(Plan, OffloadMovesStateAndKeepsItsSum) {
  const Request r = request("7B", 4);
  const std::int64_t whole = estimate_memory(r, {3}).state.total();
  const MemoryEstimate host = estimate_memory(r, {3, StateMemory::kHost, StateMemory::kHost});
  EXPECT_EQ(host.state.total(), 0);
  constexpr std::int64_t kUndoLog = (12 + 2) * 1'750'000'000LL / 4;
  EXPECT_EQ(host.undo_log, kUndoLog);
  EXPECT_EQ(host.host, whole + kUndoLog);
  const MemoryEstimate optimizer_on_disk = estimate_memory(r, {3, StateMemory::kDisk, StateMemory::kHost});
  EXPECT_EQ(optimizer_on_disk.disk, estimate_memory(r, {3}).state.optimizer);
  const std::int64_t buffers = 4 * 12 * ((page_numel(r, 3) + 3) / 4);  // offload_optimizer.buffer_count shards of pages
  EXPECT_EQ(optimizer_on_disk.host + optimizer_on_disk.disk, whole + buffers);
  const MemoryEstimate all_on_disk = estimate_memory(r, {3, StateMemory::kDisk, StateMemory::kDisk});
  EXPECT_EQ(all_on_disk.disk - optimizer_on_disk.disk,
            estimate_memory(r, {3}).state.gradients + (7'000'000'000 - 4'000'000'000) / 4 * 2);
  EXPECT_EQ(estimate_memory(r, {1, StateMemory::kHost}).state.gradients, estimate_memory(r, {1}).state.gradients);
}

// Catches buffers of codes that are not counted, times without the saved bytes, and keys that are written where the
// configuration refuses them.
TEST(Plan, QuantizedCollectivesTakeBuffersAndLessTime) {
  Request plain = request("7B", 4, "H100", 2);
  plain.hardware->network_rate = 1e9;  // the network limits the step
  Request coded = plain;
  coded.quantized_weights = coded.quantized_gradients = true;
  const auto page = static_cast<double>(page_numel(plain, 3));
  const auto more = [&](int stage) {
    return static_cast<double>(estimate_memory(coded, {stage}).buckets - estimate_memory(plain, {stage}).buckets);
  };
  EXPECT_EQ(more(0), 0);
  EXPECT_NEAR(more(1), 6 * page * (0.5 + 4.0 / 128), 2);
  EXPECT_NEAR(more(3), 6 * page * (0.5 + 4.0 / 128) + (50e6 + page) * (1 + 4.0 / 256), 2);
  EXPECT_LT(estimate_time(coded, {3}, false).step_s, 0.5 * estimate_time(plain, {3}, false).step_s);
  for (const Row& row : make_plan(coded).rows) {
    EXPECT_TRUE(row.available) << row.config;
    EXPECT_EQ(contains(row.config, "zero_quantized_weights"), row.strategy.stage == 3);
    EXPECT_EQ(contains(row.config, "zero_quantized_gradients"), row.strategy.stage > 0);
  }
  Request alone = request("7B", 1);
  alone.quantized_weights = alone.quantized_gradients = true;
  EXPECT_EQ(estimate_memory(alone, {3}).buckets, estimate_memory(request("7B", 1), {3}).buckets);
}

// Catches second shards that are not counted, or counted where the configuration has none.
TEST(Plan, SecondShardsTakeMemory) {
  const Request plain = request("7B", 8, "H100", 2);
  Request near = plain;
  near.second_shard_ranks = 4;
  const auto more = [&](const Strategy& strategy) {
    return estimate_memory(near, strategy).state.parameters - estimate_memory(plain, strategy).state.parameters;
  };
  EXPECT_EQ(more({3}), 2 * 7'000'000'000LL / 4);
  EXPECT_EQ(more({3, StateMemory::kHost}), 2 * 7'000'000'000LL / 4);
  EXPECT_EQ(more({2}), 0);
  EXPECT_EQ(more({3, StateMemory::kHost, StateMemory::kHost}), 0);
  for (const Row& row : make_plan(near).rows) {
    EXPECT_TRUE(row.available) << row.config;
    EXPECT_EQ(contains(row.config, R"("zero_hpz_partition_size": 4)"),
              row.strategy.stage == 3 && row.strategy.parameters == StateMemory::kDevice);
  }
  near.hosts = 1;
  EXPECT_TRUE(contains(format_plan(make_plan(near)), "counted for GPUs"));
  near.hardware->is_cpu = true;
  EXPECT_EQ(estimate_memory(near, {3}).state.parameters, 2 * 7'000'000'000LL / 8);
  for (const Row& row : make_plan(near).rows) EXPECT_FALSE(contains(row.config, "zero_hpz_partition_size"));
  EXPECT_TRUE(contains(format_plan(make_plan(near)), "CPU ranks of one host have no second shards"));
  near.hosts = 2;
  near.second_shard_ranks = 3;
  EXPECT_THROW(make_plan(near), ConfigError);
  near.second_shard_ranks = 0;
  EXPECT_THROW(make_plan(near), ConfigError);
  Request alone = request("7B", 1);
  EXPECT_EQ(estimate_memory(alone, {3}).state.parameters, 14'000'000'000);
}

// 2 s b h per layer and one layer of 34 s b h with checkpointing, against 34 s b h per layer; the head's logits in
// both.
TEST(Plan, ActivationsByHand) {
  Request r = request("7B", 1);
  r.model.shape = {10, 100, 1000, false};
  r.micro_batch = 2;
  r.sequence = 50;
  EXPECT_EQ(activation_bytes(r, false), 10 * 34 * 100 * 100 + 8 * 100 * 1000);
  EXPECT_EQ(activation_bytes(r, true), (2 * 10 + 34) * 100 * 100 + 8 * 100 * 1000);
  r.precision = config::Precision::kFp32;
  EXPECT_EQ(activation_bytes(r, false), 2 * 10 * 34 * 100 * 100 + 8 * 100 * 1000);
}

Request simple_hardware() {
  Request r = request("1B", 2);
  r.model.shape = {1, 0, 1, false};  // no attention in the count
  Hardware h;
  h.flops = 1e12;
  h.device_memory_rate = 1e12;
  h.device_link_rate = h.network_rate = 1e9;
  h.host_link_rate = 1e9;
  h.host_memory_rate = 1e10;
  h.disk_read_rate = h.disk_write_rate = 1e9;
  h.device_bytes = h.host_bytes = h.disk_bytes = 1'000'000'000'000;
  r.hardware = h;
  r.micro_batch = 1;
  r.sequence = 1000;
  return r;
}

// The formulas of time_model.h by hand, for 10^9 parameters, 1000 tokens, two ranks, 1 GB/s.
TEST(TimeModel, StagesByHand) {
  const Request r = simple_hardware();
  const double update_s = 30e9 / 1e12;
  const auto step_s = [&](const Strategy& strategy) { return estimate_time(r, strategy, false).step_s; };
  EXPECT_NEAR(step_s({0}), 6 + update_s, 1e-9);  // the backward hides the reduction
  EXPECT_NEAR(step_s({1}), 6 + 1 + update_s / 2, 1e-9);
  EXPECT_NEAR(step_s({2}), 6 + 1 + update_s / 2, 1e-9);                            // the backward hides the reduction
  EXPECT_NEAR(step_s({3}), 6 + update_s / 2, 1e-9);                                // everything hides
  EXPECT_NEAR(step_s({2, StateMemory::kHost}), 6 + 3 + 1, 1e-9);                   // 30 bytes * 10^9 at 10 GB/s
  EXPECT_NEAR(step_s({3, StateMemory::kDisk, StateMemory::kHost}), 6 + 16, 1e-9);  // reads 16 bytes * 10^9 at 1 GB/s
  EXPECT_NEAR(estimate_time(r, {3}, true).compute_s, 8, 1e-9);
  EXPECT_EQ(estimate_time(r, {3}, false).limit, "computation");
  EXPECT_EQ(estimate_time(r, {3, StateMemory::kDisk, StateMemory::kHost}, false).limit, "disk");
  EXPECT_NEAR(estimate_time(r, {0}, false).efficiency(), 6 / (6 + update_s), 1e-9);
}

// With a link that is fast compared with the host's memory the device updates the state: no undo log, and two pages of
// state as buffers.
TEST(TimeModel, AFastLinkUpdatesTheHostsStateOnTheDevice) {
  Request r = simple_hardware();
  const Strategy strategy{2, StateMemory::kHost};
  EXPECT_FALSE(is_updated_on_device(r, strategy));
  const std::int64_t buckets = estimate_memory(r, strategy).buckets;
  r.hardware->host_link_rate = 5e9;
  EXPECT_TRUE(is_updated_on_device(r, strategy));
  const double device_s =
      (12 + 2) * 0.5 / 5;  // state, and the gradient that waits on the host, of half of the elements
  EXPECT_NEAR(estimate_time(r, strategy, false).step_s, 6 + 1 + device_s, 1e-9);
  EXPECT_NEAR(estimate_time(r, {1, StateMemory::kHost}, false).step_s, 6 + 1 + 12 * 0.5 / 5, 1e-9);
  const MemoryEstimate memory = estimate_memory(r, strategy);
  EXPECT_EQ(memory.undo_log, 0);
  EXPECT_EQ(memory.buckets - buckets, formula::kStreamBuffers * 12 * page_numel(r, 2) / 2);
  EXPECT_TRUE(contains(config_text(r, strategy), R"("offloaded_update": "device")"));
  r.hardware->host_memory_rate = 1e13;
  EXPECT_TRUE(contains(config_text(r, strategy), R"("offloaded_update": "host")"));
}

/// 10^9 parameters on two ranks; Muon updates 600 million.
Request muon_request() {
  Request r = simple_hardware();
  r.optimizer = planned_optimizer("muon");
  r.model.muon_numel = 600'000'000;
  return r;
}

// Catches state on a drive that is counted in memory, or nowhere.
TEST(Plan, StateOfPyTorchIsOnTheDriveToo) {
  Request r = muon_request();
  const MemoryEstimate muon = estimate_memory(r, {3, StateMemory::kDisk, StateMemory::kHost});
  r.optimizer = planned_optimizer("whole", 0);
  const MemoryEstimate none = estimate_memory(r, {3, StateMemory::kDisk, StateMemory::kHost});
  EXPECT_EQ(muon.disk - none.disk, 4 * 300'000'000LL + 8 * 200'000'000LL);
  EXPECT_EQ(muon.host, none.host);
  r.optimizer = planned_optimizer("whole", 12);
  const MemoryEstimate whole = estimate_memory(r, {3, StateMemory::kDisk, StateMemory::kHost});
  EXPECT_EQ(whole.disk - none.disk, 12 * 500'000'000LL);
  EXPECT_EQ(whole.host - none.host, whole.disk - none.disk);  // in memory during the update
}

// The bytes of planned_optimizer.h by hand: the engine's masters, and what Muon keeps for a rank's half.
TEST(Plan, MuonKeepsLessThanAdamW) {
  Request r = muon_request();
  constexpr std::int64_t kKept = 4 * 300'000'000LL + 8 * 200'000'000LL;
  EXPECT_EQ(estimate_memory(r, {0}).state.optimizer, 4'000'000'000 + 2 * kKept);
  EXPECT_EQ(estimate_memory(r, {2}).state.optimizer, 2'000'000'000 + kKept);
  EXPECT_EQ(estimate_memory(r, {0}).update, 8 * 1'000'000'000LL) << "gradients are in 16 bit";
  EXPECT_EQ(estimate_memory(r, {1}).update, 4 * 500'000'000LL);
  EXPECT_EQ(estimate_memory(r, {2}).update, 4 * 500'000'000LL);
  const MemoryEstimate host = estimate_memory(r, {2, StateMemory::kHost});
  EXPECT_EQ(host.state.optimizer, 0);
  EXPECT_EQ(host.undo_log, 0);
  EXPECT_EQ(host.host, 4'000'000'000LL + kKept + host.update);
  r.optimizer = planned_optimizer("whole", 12);
  EXPECT_EQ(estimate_memory(r, {2}).state.optimizer, 2'000'000'000 + 12 * 500'000'000LL);
  r.optimizer = planned_optimizer("Lion");
  EXPECT_EQ(estimate_memory(r, {2}).state.optimizer, 8 * 500'000'000LL);
  EXPECT_THROW(planned_optimizer("Shampoo?"), ConfigError);
  EXPECT_THROW(planned_optimizer("whole", -1), ConfigError);
}

TEST(TimeModel, MuonsProductsAndParts) {
  Request r = muon_request();
  r.model.shape.hidden = 1000;
  Request adamw = r;
  adamw.optimizer = {};
  const auto difference_s = [&](const Strategy& strategy) {
    return estimate_time(r, strategy, false).step_s - estimate_time(adamw, strategy, false).step_s;
  };
  constexpr double kProducts = 22.0 * 1000 * 600e6 / 1e12;
  EXPECT_NEAR(difference_s({0}), kProducts + 16e9 / 1e12, 1e-6);
  r.model.largest_numel = adamw.model.largest_numel =
      20'000'000;  // a page has at least one such parameter for each rank
  EXPECT_NEAR(difference_s({2}), (kProducts + 16e9 / 1e12) / 2, 1e-6);
  r.model.largest_numel = adamw.model.largest_numel = 90'000'000;
  EXPECT_NEAR(difference_s({2}), (kProducts + 16e9 / 1e12) / 2 + 12 * 600e6 / 1e9, 1e-6);
}

// Catches a written configuration with another optimizer than the planned one.
TEST(Plan, WritesTheOptimizer) {
  Request r = request("7B", 4);
  for (const char* name : {"AdamW", "Adam", "Lamb", "Lion", "Adagrad", "SGD", "Muon", "whole"}) {
    r.optimizer = planned_optimizer(name);
    const Plan plan = make_plan(r);
    const auto config = config::Config::from_json(plan.rows[0].config, 4);
    EXPECT_TRUE(plan.rows[0].available) << name;
    EXPECT_EQ(contains(plan.rows[0].config, std::string("\"") + name + '"'), r.optimizer.type != "whole") << name;
    EXPECT_EQ(contains(plan.rows[0].config, "optimizer_sees"), r.optimizer.type == "whole");
    if (!r.optimizer.by_torch) {
      EXPECT_EQ(config::optimizer_state_count(config.optimizer), r.optimizer.states) << name;
    }
  }
  r.optimizer = planned_optimizer("Muon");
  EXPECT_TRUE(contains(format_plan(make_plan(r)), "Muon updates ")) << format_plan(make_plan(r));
}

TEST(TimeModel, ASlowLinkLimitsStage3AndANetworkLimitsHosts) {
  Request r = simple_hardware();
  r.hardware->device_link_rate = 1e8;
  const TimeEstimate slow = estimate_time(r, {3}, false);
  EXPECT_EQ(slow.limit, "gathering parameters");
  EXPECT_NEAR(slow.step_s, 10 + 20 + 0.015, 1e-9);
  // Whole gradients are sent once a step, overlapped with its last backward, and summed in fp32; shards after every
  // backward.
  r.accumulation_steps = 3;
  EXPECT_NEAR(estimate_time(r, {1}, false).step_s, 3 * 2 + 2 * 4 + 20 + 10 + 0.015, 1e-9);
  EXPECT_NEAR(estimate_time(r, {2}, false).step_s, 3 * 2 + 3 * 10 + 10 + 0.015, 1e-9);
  r = simple_hardware();
  r.hosts = 2;
  r.devices_per_host = 1;
  r.hardware->network_rate = 1e8;
  EXPECT_NEAR(estimate_time(r, {3}, false).step_s, 10 + 20 + 0.015, 1e-9);
}

// Catches messages without latency, and cores that are assumed to compute and copy at the same time.
TEST(TimeModel, HopsAndLackOfOverlap) {
  Request r = simple_hardware();
  r.devices_per_host = 2;
  r.hosts = 3;
  r.model.largest_numel = 500'000'000;  // two pages, of six ranks: three hops inside hosts and two between them
  r.hardware->device_latency_s = 1;
  r.hardware->network_latency_s = 10;
  r.hardware->overlap = 0.25;
  const double bytes_s = 2.0 * 5 / 6 / (r.hardware->network_rate / 1e9);
  const double gather_s = bytes_s + 2 * (3 * 1 + 2 * 10);
  const double reduce_s = 2.0 * 2 * 2 / 3 / (r.hardware->network_rate / 1e9) + 2 * (3 * 1 + 2 * 10);
  const double forward_s = gather_s + 0.75 * 2;
  const double backward_s = gather_s + reduce_s + 0.75 * 4;
  EXPECT_NEAR(estimate_time(r, {3}, false).step_s, forward_s + backward_s + 30e9 / 6 / 1e12, 1e-9);
}

// Catches gathers that cross hosts after the first one of a step, and second shards in 8 bits: 10^9 parameters on 2
// hosts of 2 devices, 2 GB per gather, 0.1 GB/s between hosts and 1 GB/s inside.
TEST(TimeModel, SecondShardsAreGatheredInsideTheHost) {
  Request r = simple_hardware();
  r.hosts = 2;
  r.hardware->network_rate = 1e8;
  r.hardware->device_latency_s = 0.1;
  r.hardware->network_latency_s = 0.25;
  r.model.largest_numel = 500'000'000;  // two pages
  r.accumulation_steps = 3;
  r.second_shard_ranks = 2;
  const double hops_s = 2 * (2 * 0.1 + 0.25);
  const double all_s = 2.0 * 3 / 4 / 0.1 + hops_s;
  const double near_s = 2.0 * 1 / 2 / 1 + 2 * 0.1;
  const double reduce_s = 2.0 * 2 * 1 / 2 / 0.1 + hops_s;
  const double update_s = 30e9 / 4 / 1e12;
  EXPECT_NEAR(estimate_time(r, {3}, false).step_s, all_s + 2 * 2 + 3 * (near_s + reduce_s) + update_s, 1e-9);
  r.quantized_weights = true;
  const double coded_s = 1.015625 * 3 / 4 / 0.1 + hops_s;
  EXPECT_NEAR(estimate_time(r, {3}, false).step_s, coded_s + 2 * 2 + 3 * (near_s + reduce_s) + update_s, 1e-9);
}

// Catches bytes between hosts that are not those that the engine sends: 10^9 parameters in bf16 on 3 hosts of 4.
TEST(TimeModel, BytesBetweenHosts) {
  Request r = simple_hardware();
  r.hosts = 3;
  r.devices_per_host = 4;
  r.hardware->network_rate = 1e7;  // what a step waits for
  const double update_s = 30e9 / 12 / 1e12;
  const auto step_s = [&](int stage) { return estimate_time(r, {stage}, false).step_s; };
  const double ring_s = 2e9 * 11 / 12 / 1e7;
  const double direct_s = 2e9 * 4 * 2 / 3 / 1e7;
  EXPECT_NEAR(step_s(3), 2 * ring_s + direct_s + update_s, 1e-6);
  EXPECT_NEAR(step_s(0), 2 + direct_s + ring_s + 12 * update_s, 1e-6);
  r.quantized_gradients = true;
  EXPECT_NEAR(step_s(3), 2 * ring_s + 0.53125 / 2 * direct_s + update_s, 1e-6);
  // By hosts: each byte crosses once for each host that lacks it; exact sums of fp32 go from host to host.
  r.hardware->is_cpu = true;
  const double gather_s = 2e9 * 2 / 3 / 1e7;
  EXPECT_NEAR(step_s(3), 2 * gather_s + 0.53125e9 * 2 / 3 / 1e7 + update_s, 1e-6);
  r.quantized_gradients = false;
  EXPECT_NEAR(step_s(3), 2 * gather_s + 4e9 * 2 * 4 / 9 / 1e7 + update_s, 1e-6);
  r.hardware->network_rate = 1e12;  // shared memory
  r.hardware->device_link_rate = 1e8;
  EXPECT_NEAR(step_s(3), 3 * 2e9 * 3 / 4 / 1e8 + update_s, 1e-6);
}

TEST(Recommendation, FollowsTheGuidance) {
  const auto choice = [](const Request& r) {
    const Plan plan = make_plan(r);
    return plan.recommendation.row ? recommended(plan).strategy.stage : -1;
  };
  EXPECT_EQ(choice(request("350M", 8, "H100")), 1);  // fits without sharding
  EXPECT_EQ(choice(request("7B", 8, "H100")), 2);    // optimizer state and gradients are sharded
  EXPECT_EQ(choice(request("70B", 16, "H100", 4)), 3);
  EXPECT_EQ(choice(request("350M", 1, "H100")), 0);  // one rank has nothing to shard
  EXPECT_EQ(choice(request("7B", 4)), 2);            // unknown devices
  EXPECT_EQ(choice(request("100T", 1, "4090")), -1);
}

TEST(Recommendation, OffloadOnlyWhenTheDevicesTogetherAreTooSmall) {
  const Plan plan = make_plan(request("70B", 8, "A100"));
  ASSERT_TRUE(plan.recommendation.row);
  EXPECT_TRUE(recommended(plan).strategy.offloads());
  EXPECT_TRUE(contains(plan.recommendation.reason, "ranks would do without")) << plan.recommendation.reason;
  const bool says_so = contains(plan.recommendation.reason, "does not have this offload yet");
  EXPECT_EQ(says_so, !recommended(plan).available);
  EXPECT_GT(ranks_to_fit(plan.request), 8);
}

// Catches a recommendation that this version does not run, although another row that runs fits.
TEST(Recommendation, WhatRunsComesFirst) {
  Plan plan = make_plan(request("70B", 8, "A100"));
  const std::size_t before = *plan.recommendation.row;
  std::size_t last = before;
  for (std::size_t i = 0; i < plan.rows.size(); ++i) {
    plan.rows[i].available = false;
    if (plan.rows[i].checkpointed.fits.value()) last = i;
  }
  ASSERT_NE(last, before);
  plan.rows[last].available = true;
  EXPECT_EQ(recommend(plan.request, plan.rows).row, last);
}

// Catches a row that is called available although the configuration refuses it, and a refusal without a reason.
TEST(Plan, WrittenConfigurationsAreReadOrRefusedWithWords) {
  Request r = request("7B", 4, "H100");
  for (const config::Precision precision :
       {config::Precision::kBf16, config::Precision::kFp16, config::Precision::kFp32}) {
    r.precision = precision;
    r.accumulation_steps = 3;
    for (const Row& row : make_plan(r).rows) {
      EXPECT_TRUE(row.available || row.strategy.offloads()) << row.config;
      if (!row.available) {
        EXPECT_THROW(config::describe(row.config, "plan", 4), ConfigError);
        continue;
      }
      const config::Config config = config::Config::from_json(row.config, 4);
      EXPECT_EQ(config.zero.stage, row.strategy.stage);
      EXPECT_EQ(config.precision, precision);
      EXPECT_EQ(config.batch.train_batch_size, 12);
    }
  }
}

TEST(Plan, JsonHasTheSameFigures) {
  const Plan plan = make_plan(request("7B", 4, "H100"));
  const auto json = nlohmann::json::parse(plan_json(plan));
  EXPECT_EQ(json["model"]["parameters"], 7'000'000'000);
  EXPECT_EQ(json["rows"].size(), plan.rows.size());
  EXPECT_EQ(json["rows"][0]["plain"]["device_bytes"], plan.rows[0].plain.device_bytes);
  EXPECT_EQ(json["recommendation"]["row"], *plan.recommendation.row);
}

TEST(Plan, NonsenseIsAnError) {
  Request r = request("7B", 0);
  EXPECT_THROW(make_plan(r), ConfigError);
  r = request("7B", 1);
  r.sequence = -1;
  EXPECT_THROW(make_plan(r), ConfigError);
  r = request("1e18", 1);
  r.sequence = r.micro_batch = 1'000'000'000;
  EXPECT_THROW(make_plan(r), ConfigError);
}

TEST(Hardware, PresetsAndFigures) {
  for (const std::string& name : hardware_preset_names()) {
    Hardware hardware = hardware_preset(name);
    EXPECT_GT(hardware.device_bytes, 20'000'000'000) << name;
    EXPECT_GT(hardware.device_latency_s, 0) << name;
    for (const std::string& figure : figure_names()) {
      const bool is_number = figure == "overlap" || figure.ends_with("latency");
      set_figure(hardware, figure, is_number ? "1" : "1GB");
    }
    EXPECT_EQ(hardware.disk_bytes, 1'000'000'000);
    EXPECT_EQ(hardware.disk_write_rate, 1e9);
  }
  EXPECT_EQ(hardware_preset("h100").name, "H100");
  Hardware hardware;
  EXPECT_THROW(hardware_preset("TPU"), ConfigError);
  EXPECT_THROW(set_figure(hardware, "colour", "1GB"), ConfigError);
  const auto figure = [&](const char* name, const char* value) { set_figure(hardware, name, value); };
  figure("disk", "80GiB");
  figure("disk_read_rate", "25GB/s");
  figure("flops", "4e14");
  figure("network_latency", "14us");
  figure("overlap", "80%");
  EXPECT_EQ(hardware.disk_bytes, std::int64_t{80} << 30);
  EXPECT_EQ(hardware.disk_read_rate, 25e9);
  EXPECT_EQ(hardware.flops, 4e14);
  EXPECT_DOUBLE_EQ(hardware.network_latency_s, 14e-6);
  EXPECT_DOUBLE_EQ(hardware.overlap, 0.8);
  for (const char* text : {"", "GB", "-1GB", "1 GB", "1QB", "nan", "1e30", "0"}) {
    EXPECT_THROW(figure("disk", text), ConfigError) << text;
  }
  EXPECT_THROW(figure("overlap", "1.5"), ConfigError);
  EXPECT_THROW(figure("device_latency", "14GB"), ConfigError);
}

// Catches a file without one of the figures, which would count as 0, or with a misspelt one.
TEST(Hardware, FilesHaveAllFigures) {
  const std::string path =
      std::filesystem::path(testing::TempDir()) / ("machine_" + std::to_string(::getpid()) + ".json");
  const auto read = [&](const std::string& text) {
    std::ofstream(path) << text;
    return read_hardware(path);
  };
  std::string all = R"({"name": "this machine")";
  for (const std::string& name : figure_names()) {
    const bool is_number = name == "overlap" || name.ends_with("latency");
    all += ", \"" + name + (is_number ? "\": 0.5" : "\": \"2GB/s\"");
  }
  const Hardware hardware = read(all + "}");
  EXPECT_EQ(hardware.name, "this machine");
  EXPECT_EQ(hardware.network_rate, 2e9);
  EXPECT_EQ(hardware.overlap, 0.5);
  EXPECT_FALSE(hardware.is_cpu);
  EXPECT_TRUE(read(all + R"(, "device": "cpu"})").is_cpu);
  EXPECT_FALSE(read(all + R"(, "device": "cuda"})").is_cpu);
  EXPECT_THROW(read(all + R"(, "colour": 1})"), ConfigError);
  EXPECT_THROW(read(R"({"name": "half", "flops": 1e12})"), ConfigError);
  EXPECT_THROW(read("[]"), ConfigError);
  std::filesystem::remove(path);
  EXPECT_THROW(read_hardware(path), IoError);
}

}  // namespace
}  // namespace zeropage::planner
