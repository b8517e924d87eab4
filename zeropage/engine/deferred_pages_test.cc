// Tensors of an Init scope: which are adopted, evicted, gathered again and dropped, on ranks as threads.
#include "zeropage/engine/deferred_pages.h"

#include <gtest/gtest.h>

#include <ATen/ops/add.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>

#include <algorithm>
#include <thread>
#include <vector>

#include "zeropage/comm/testing/test_ranks.h"
#include "zeropage/engine/init.h"

namespace zeropage::engine {
namespace {

using std::chrono::milliseconds;

constexpr std::int64_t kSide = 64;
constexpr std::int64_t kNumel = kSide * kSide;

/// Room for `tensors` tensors of kSide x kSide.
config::Config config_with_room_for(int tensors) {
  config::Config config;
  config.zero.stage = 3;
  config.zero.persistence_threshold_numel = 0;
  config.zero.max_live_numel = tensors * kNumel;
  return config;
}

std::shared_ptr<comm::Communicator> borrowed(comm::Communicator& communicator) {
  return {&communicator, [](auto*) {}};
}

at::Tensor tensor_of(double value) { return at::full({kSide, kSide}, value, at::kFloat); }

float mean_of(const at::Tensor& tensor) { return tensor.mean().item<float>(); }

bool absent(const at::Tensor& tensor) {
  return tensor.storage().unsafeGetStorageImpl()->_mutable_data_ptr_no_checks().get() == nullptr;
}

// Catches tensors that are not found where they are made, a limit that is not kept, shards with other ranks' values or
// at the wrong place, and tensors that cannot be read after the scope.
TEST(DeferredPages, BeyondTheLimitEveryRankHasAShardOfRank0sValues) {
  const auto outcomes = comm::run_threads(3, comm::kRankTimeout, [](comm::Communicator& communicator) {
    std::vector<at::Tensor> tensors;
    Init scope(config_with_room_for(4), borrowed(communicator), c10::Device(c10::kCPU));
    for (int i = 0; i < 10; ++i) {
      tensors.push_back(tensor_of(i + 100 * communicator.rank()));
      tensors.back()[i][i] = -1;
      EXPECT_LE(std::count_if(tensors.begin(), tensors.end(), [](const auto& t) { return !absent(t); }), 4);
    }
    scope.leave();
    EXPECT_TRUE(absent(tensors[0]));
    EXPECT_FALSE(absent(tensors[9]));
    for (int i = 0; i < 7; ++i) {
      EXPECT_TRUE(is_deferred(tensors[i]));
      EXPECT_FLOAT_EQ(mean_of(tensors[i]), static_cast<float>(i) - static_cast<float>(i + 1) / kNumel) << i;
      EXPECT_EQ(tensors[i][i][i].item<float>(), -1) << i;
    }
    EXPECT_FALSE(is_deferred(tensor_of(1))) << "made after the scope";
  });
  for (const auto& outcome : outcomes) EXPECT_EQ(outcome, "");
}

// Catches writes to a gathered tensor that are lost with its next eviction, on all ranks or on rank 0 only.
TEST(DeferredPages, WhatWasWrittenSinceIsWhatRank0Wrote) {
  const auto outcomes = comm::run_threads(2, comm::kRankTimeout, [](comm::Communicator& communicator) {
    std::vector<at::Tensor> tensors;
    Init scope(config_with_room_for(2), borrowed(communicator), c10::Device(c10::kCPU));
    for (int i = 0; i < 6; ++i) tensors.push_back(tensor_of(i));
    for (int i = 0; i < 6; ++i) tensors[i].fill_(10 * i + communicator.rank());
    for (int i = 0; i < 4; ++i) EXPECT_EQ(mean_of(tensors[i]), 10 * i);
  });
  for (const auto& outcome : outcomes) EXPECT_EQ(outcome, "");
}

// Catches temporaries that are sent, and memory that is kept for destroyed tensors.
TEST(DeferredPages, TemporariesCostNoCommunication) {
  const auto outcomes = comm::run_threads(2, comm::kRankTimeout, [](comm::Communicator& communicator) {
    Init scope(config_with_room_for(8), borrowed(communicator), c10::Device(c10::kCPU));
    const auto kept = tensor_of(3);
    const auto before = communicator.bytes_moved();
    for (int i = 0; i < 200; ++i) (void)mean_of(at::add(tensor_of(i), 1));
    EXPECT_LT(communicator.bytes_moved() - before, 4 * kNumel) << "400 temporaries of this many bytes were made";
    EXPECT_EQ(mean_of(kept), 3);
  });
  for (const auto& outcome : outcomes) EXPECT_EQ(outcome, "");
}

// Catches ranks that evict different tensors because one of them still refers to what the others have freed.
TEST(DeferredPages, GarbageMayBeFreedAtDifferentMoments) {
  const auto outcomes = comm::run_threads(2, comm::kRankTimeout, [](comm::Communicator& communicator) {
    std::vector<at::Tensor> kept, garbage;
    Init scope(config_with_room_for(4), borrowed(communicator), c10::Device(c10::kCPU));
    for (int i = 0; i < 20; ++i) {
      kept.push_back(tensor_of(i));
      auto temporary = tensor_of(-i);
      if (communicator.rank() == 1) garbage.push_back(temporary);
      if (i % 7 == 0) garbage.clear();
    }
    for (int i = 0; i < 20; ++i) EXPECT_EQ(mean_of(kept[i]), i);
  });
  for (const auto& outcome : outcomes) EXPECT_EQ(outcome, "");
}

// Catches a hang, or an error without a name, when ranks build different models.
TEST(DeferredPages, RanksThatMakeOtherTensorsAreTold) {
  const auto outcomes = comm::run_threads(2, comm::kRankTimeout, [](comm::Communicator& communicator) {
    std::vector<at::Tensor> tensors;
    Init scope(config_with_room_for(2), borrowed(communicator), c10::Device(c10::kCPU));
    tensors.push_back(tensor_of(0));
    if (communicator.rank() == 1) tensors.push_back(at::ones({kSide, 2 * kSide}));
    for (int i = 0; i < 4; ++i) tensors.push_back(tensor_of(i));
  });
  for (const auto& outcome : outcomes) {
    EXPECT_TRUE(comm::contains(outcome, "PeerError")) << outcome;
    EXPECT_TRUE(comm::contains(outcome, "tensor 1 of the Init scope (aten::full, [64, 64] Float)")) << outcome;
    EXPECT_TRUE(comm::contains(outcome, "tensor 1 of the Init scope (aten::ones, [64, 128] Float)")) << outcome;
  }
}

// Catches an endless wait for a rank that does not run an operator that the others run.
TEST(DeferredPages, AReadThatOthersDoNotMakeEndsInTime) {
  const auto outcomes = comm::run_threads(2, milliseconds(200), [](comm::Communicator& communicator) {
    std::vector<at::Tensor> tensors;
    Init scope(config_with_room_for(2), borrowed(communicator), c10::Device(c10::kCPU));
    for (int i = 0; i < 3; ++i) tensors.push_back(tensor_of(i));
    if (communicator.rank() == 0) (void)mean_of(tensors[0]);
    std::this_thread::sleep_for(milliseconds(300));
  });
  EXPECT_TRUE(comm::contains(outcomes[0], "aten::mean needs tensor 0 of the Init scope")) << outcomes[0];
  EXPECT_TRUE(comm::contains(outcomes[0], "TimeoutError")) << outcomes[0];
  EXPECT_EQ(outcomes[1], "");
}

// Catches settled tensors that still depend on other ranks, and storages that operators replace under their page.
TEST(DeferredPages, SettledAndResizedTensorsAreOrdinary) {
  const auto outcomes = comm::run_threads(2, comm::kRankTimeout, [](comm::Communicator& communicator) {
    std::vector<at::Tensor> tensors;
    {
      Init scope(config_with_room_for(2), borrowed(communicator), c10::Device(c10::kCPU));
      for (int i = 0; i < 5; ++i) tensors.push_back(tensor_of(i));
      tensors.push_back(at::ones({8}));
    }
    EXPECT_FALSE(is_deferred(tensors[5])) << "too small to be worth it";
    settle(tensors[0]);
    tensors[1].resize_({3 * kSide, kSide}).fill_(7);
    tensors.resize(2);
    EXPECT_FALSE(is_deferred(tensors[0]));
    EXPECT_FALSE(is_deferred(tensors[1]));
    if (communicator.rank() == 0) {
      EXPECT_EQ(mean_of(tensors[0]), 0);
      EXPECT_EQ(tensors[0].data_ptr<float>()[kNumel - 1], 0);
      EXPECT_EQ(mean_of(tensors[1]), 7);
    }
  });
  for (const auto& outcome : outcomes) EXPECT_EQ(outcome, "");
}

}  // namespace
}  // namespace zeropage::engine
