// Reductions in 4 bits, on ranks as threads that read each other's memory or that exchange codes.
#include "zeropage/reduce/coded_reductions.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <thread>
#include <vector>

#include "zeropage/comm/hosts/hosts_communicator.h"
#include "zeropage/comm/testing/delayed_ranks.h"
#include "zeropage/comm/testing/test_ranks.h"
#include "zeropage/comm/thread_communicator.h"
#include "zeropage/optim/block_codes.h"
#include "zeropage/optim/convert.h"

namespace zeropage::reduce {
namespace {

constexpr std::int64_t kNumel = 1100;  // of a shard: the last block is not full

/// A rank's gradients of all shards, as they are rounded to their type.
std::vector<float> gradients_of(int rank, std::int64_t numel, DType dtype) {
  std::mt19937 random(static_cast<unsigned>(rank + 1));
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<std::size_t>(numel));
  for (float& value : values) value = normal(random);
  std::vector<std::byte> narrow(values.size() * static_cast<std::size_t>(element_bytes(dtype)));
  optim::from_float32(values.data(), narrow.data(), dtype, numel);
  optim::to_float32(narrow.data(), dtype, values.data(), numel);
  return values;
}

std::vector<std::byte> narrowed(const std::vector<float>& wide, DType dtype) {
  std::vector<std::byte> narrow(wide.size() * static_cast<std::size_t>(element_bytes(dtype)));
  optim::from_float32(wide.data(), narrow.data(), dtype, static_cast<std::int64_t>(wide.size()));
  return narrow;
}

/// The expected sum of the owner: codes of each rank's part by the scalar functions, added in fp32.
std::vector<float> expected_sum(int size, int owner, DType dtype, float before) {
  std::vector<float> sum(kNumel);
  for (int rank = 0; rank < size; ++rank) {
    const auto all = gradients_of(rank, kNumel * size, dtype);
    const std::vector<float> part(all.begin() + owner * kNumel, all.begin() + (owner + 1) * kNumel);
    auto values = narrowed(part, dtype);
    const optim::CodedParts parts{optim::BlockCode::kInt4, dtype, kNumel, 1};
    std::vector<std::byte> coded(static_cast<std::size_t>(parts.total_bytes()));
    optim::encode_blocks(parts, values.data(), coded.data());
    optim::decode_blocks(parts, coded.data(), values.data());
    std::vector<float> wide(kNumel);
    optim::to_float32(values.data(), dtype, wide.data(), kNumel);
    for (std::size_t i = 0; i < wide.size(); ++i) sum[i] = rank == 0 ? wide[i] : sum[i] + wide[i];
  }
  for (float& value : sum) value += before;
  return sum;
}

void run(int world, bool two_sided, const comm::RankBody& body) {
  for (const auto& outcome : comm::run_threads(world, std::chrono::milliseconds(20000), two_sided, body))
    EXPECT_EQ(outcome, "");
}

std::shared_ptr<comm::Communicator> coded(comm::Communicator& communicator, std::shared_ptr<Ledger> ledger = nullptr) {
  if (!ledger) ledger = std::make_shared<Ledger>();
  return code_reductions(std::shared_ptr<comm::Communicator>(&communicator, [](auto*) {}), c10::kCPU,
                         std::move(ledger));
}

class CodedSums : public testing::TestWithParam<std::tuple<int, bool>> {};
INSTANTIATE_TEST_SUITE_P(Worlds, CodedSums, testing::Combine(testing::Values(1, 2, 4), testing::Bool()));

// Catches sums that depend on the transport or on the adding rank, other orders of addition, and parts that are sent to
// the wrong owner. A single rank sums nothing, and codes nothing.
TEST_P(CodedSums, AreThoseOfTheCodes) {
  const auto [world, two_sided] = GetParam();
  run(world, two_sided, [](comm::Communicator& communicator) {
    const auto sums = coded(communicator);
    const int size = communicator.size();
    for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
      for (const bool accumulate : {false, true}) {
        auto whole = narrowed(gradients_of(communicator.rank(), kNumel * size, dtype), dtype);
        std::vector<float> out(kNumel, accumulate ? 0.25F : 7.0F);
        std::int64_t told = 0;
        auto work = sums->reduce_scatter(whole.data(), out.data(), kNumel, dtype, DType::kFloat32, accumulate, {"sum"},
                                         [&](std::int64_t, std::int64_t numel) { told += numel; });
        while (accumulate && !work->poll()) std::this_thread::yield();
        work->wait();
        EXPECT_EQ(told, kNumel);
        if (size > 1) {
          EXPECT_EQ(out, expected_sum(size, communicator.rank(), dtype, accumulate ? 0.25F : 0.0F));
        } else {
          const auto exact = gradients_of(0, kNumel, dtype);
          EXPECT_EQ(out[9], exact[9] + (accumulate ? 0.25F : 0.0F));
        }
      }
    }
    communicator.barrier({"done"});
  });
}

// Catches the sum of a whole page, in place (stage 1), that reads what has been overwritten.
TEST_P(CodedSums, StandInPlace) {
  const auto [world, two_sided] = GetParam();
  run(world, two_sided, [](comm::Communicator& communicator) {
    const auto sums = coded(communicator);
    const int size = communicator.size();
    auto whole = gradients_of(communicator.rank(), kNumel * size, DType::kFloat32);
    float* own = whole.data() + communicator.rank() * kNumel;
    sums->reduce_scatter(whole.data(), own, kNumel, DType::kFloat32, DType::kFloat32, false, {"sum"}, {})->wait();
    if (size > 1) {
      EXPECT_EQ(std::vector<float>(own, own + kNumel), expected_sum(size, communicator.rank(), DType::kFloat32, 0.0F));
    }
    communicator.barrier({"done"});
  });
}

// Catches an overflow that the codes hide: the step would be applied with wrong values.
TEST_P(CodedSums, ShowWhatIsNotFinite) {
  const auto [world, two_sided] = GetParam();
  run(world, two_sided, [](comm::Communicator& communicator) {
    const auto sums = coded(communicator);
    std::vector<float> whole(static_cast<std::size_t>(kNumel * communicator.size()), 1.0F);
    if (communicator.rank() + 1 == communicator.size()) whole[200] = std::numeric_limits<float>::infinity();
    std::vector<float> out(kNumel);
    sums->reduce_scatter(whole.data(), out.data(), kNumel, DType::kFloat32, DType::kFloat32, false, {"sum"}, {})
        ->wait();
    EXPECT_EQ(std::isfinite(out[200]), communicator.rank() > 0);
    EXPECT_TRUE(std::isfinite(out[500]));
    communicator.barrier({"done"});
  });
}

// Catches sums over several hosts that are coded rank by rank, as on one host.
TEST(CodedSumsOfHosts, AreFormedOnEachHostFirst) {
  constexpr comm::HostGrid kGrid{2, 2};
  const auto timeout = std::chrono::milliseconds(20000);
  std::vector<std::vector<std::unique_ptr<comm::Communicator>>> hosts;
  std::vector<std::vector<std::unique_ptr<comm::Communicator>>> columns;
  for (int i = 0; i < 2; ++i) {
    hosts.push_back(comm::make_thread_communicators(2, timeout));
    columns.push_back(comm::make_thread_communicators(2, timeout));
  }
  std::vector<std::unique_ptr<comm::Communicator>> ranks;
  for (std::size_t rank = 0; rank < 4; ++rank) {
    ranks.push_back(comm::make_hosts_communicator(std::move(hosts[rank / 2][rank % 2]),
                                                  std::move(columns[rank % 2][rank / 2]), true));
  }
  const auto outcomes = comm::run_threads(std::move(ranks), [&](comm::Communicator& communicator) {
    const auto sums = coded(communicator);
    std::vector<float> expected(kNumel);
    for (int host = 0; host < kGrid.hosts; ++host) {
      std::vector<float> of_host(kNumel);
      for (int local = 0; local < kGrid.local_size; ++local) {
        const auto all = gradients_of(kGrid.rank_at(host, local), 4 * kNumel, DType::kFloat32);
        for (std::size_t i = 0; i < of_host.size(); ++i) {
          of_host[i] += all[static_cast<std::size_t>(communicator.rank() * kNumel) + i];
        }
      }
      optim::round_to_blocks(optim::BlockCode::kInt4, DType::kFloat32, of_host.data(), of_host.data(), kNumel);
      for (std::size_t i = 0; i < of_host.size(); ++i) expected[i] += of_host[i];
    }
    const auto whole = gradients_of(communicator.rank(), 4 * kNumel, DType::kFloat32);
    std::vector<float> out(kNumel);
    sums->reduce_scatter(whole.data(), out.data(), kNumel, DType::kFloat32, DType::kFloat32, false, {"sum"}, {})
        ->wait();
    EXPECT_EQ(out, expected);
    communicator.barrier({"done"});
  });
  for (const auto& outcome : outcomes) EXPECT_EQ(outcome, "");
}

// Catches gradients that are sent without coding, and buffers that are not counted or never freed.
TEST(CodedSumsBytes, AreAQuarterOfSixteenBits) {
  run(2, /*two_sided=*/true, [](comm::Communicator& communicator) {
    const auto ledger = std::make_shared<Ledger>();
    const auto sums = coded(communicator, ledger);
    constexpr std::int64_t kLarge = 100'000;
    std::vector<std::uint16_t> whole(2 * kLarge, 0x3f80);
    std::vector<float> out(kLarge);
    const auto before = communicator.bytes_moved();
    for (int i = 0; i < 3; ++i) {
      sums->reduce_scatter(whole.data(), out.data(), kLarge, DType::kBFloat16, DType::kFloat32, false, {"sum"}, {})
          ->wait();
    }
    EXPECT_EQ(out[5], 2.0F);
    EXPECT_LE(communicator.bytes_moved() - before, 3 * 0.28 * 2 * kLarge);
    const auto coded_bytes = 2 * optim::coded_bytes(optim::BlockCode::kInt4, kLarge);
    const auto held = ledger->peak_bytes(MemoryKind::kBuffers);
    EXPECT_GE(held, 2 * coded_bytes);
    EXPECT_LE(held, 2 * coded_bytes + 20000);
    communicator.barrier({"done"});
  });
}

}  // namespace
}  // namespace zeropage::reduce
