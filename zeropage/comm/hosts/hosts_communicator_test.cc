// Ranks of several hosts as threads: a communicator of threads for each host, and one for each column.
#include "zeropage/comm/hosts/hosts_communicator.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <limits>
#include <optional>

#include "zeropage/comm/testing/communicator_conformance.h"
#include "zeropage/comm/testing/fault_communicator.h"
#include "zeropage/comm/testing/test_ranks.h"
#include "zeropage/comm/wrapped_communicator.h"
#include "zeropage/optim/block_codes.h"
#include "zeropage/optim/convert.h"

namespace zeropage::comm {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

constexpr milliseconds kShort{500};

using Communicators = std::vector<std::unique_ptr<Communicator>>;

/// Every rank's communicator. `wrap` puts something around each of the two that it is made of.
template <typename Wrap>
Communicators make_grid(const HostGrid& grid, milliseconds timeout, bool deterministic_reduction, const Wrap& wrap) {
  std::vector<Communicators> hosts;
  std::vector<Communicators> columns;
  for (int h = 0; h < grid.hosts; ++h) hosts.push_back(make_thread_communicators(grid.local_size, timeout));
  for (int c = 0; c < grid.local_size; ++c) columns.push_back(make_thread_communicators(grid.hosts, timeout));
  Communicators ranks;
  for (int r = 0; r < grid.size(); ++r) {
    const auto host = static_cast<std::size_t>(grid.host_of(r));
    const auto local = static_cast<std::size_t>(grid.local_of(r));
    ranks.push_back(make_hosts_communicator(wrap(std::move(hosts[host][local]), r),
                                            wrap(std::move(columns[local][host]), r), deterministic_reduction));
  }
  return ranks;
}

Communicators make_grid(const HostGrid& grid, milliseconds timeout, bool deterministic_reduction = true) {
  return make_grid(grid, timeout, deterministic_reduction,
                   [](std::unique_ptr<Communicator> plain, int) { return plain; });
}

class HostsConformance : public testing::TestWithParam<HostGrid> {};

// Catches sums in another order than the ranks', blocks of hosts at wrong places, and stages that overtake each other.
TEST_P(HostsConformance, Holds) {
  for (const std::string& outcome : run_threads(make_grid(GetParam(), kRankTimeout), run_conformance))
    EXPECT_EQ(outcome, "");
}

INSTANTIATE_TEST_SUITE_P(Grids, HostsConformance, testing::Values(HostGrid{2, 2}, HostGrid{3, 2}));

// Catches stages that run in the right order only when all ranks are equally fast.
TEST(HostsCommunicator, ConformsWhereRanksAndNetworksAreSlow) {
  const auto slow = [](std::unique_ptr<Communicator> plain, int rank) {
    return make_fault_communicator(std::move(plain), random_delays(static_cast<std::uint64_t>(rank), microseconds(50)),
                                   /*two_sided=*/true);
  };
  const auto outcomes = run_threads(make_grid({2, 2}, kRankTimeout, true, slow), [](Communicator& c) {
    std::vector<float> whole(4 * 3000, static_cast<float>(c.rank() + 1));
    std::vector<float> shards(50 * 3000);
    std::vector<WorkPtr> works;
    for (int i = 0; i < 50; ++i) {
      works.push_back(c.reduce_scatter(whole.data(), shards.data() + i * 3000, 3000, DType::kFloat32, DType::kFloat32,
                                       false, {"sum", i}, {}));
      if (i % 7 == 3) works[static_cast<std::size_t>(i - 2)]->wait();
      if (i % 9 == c.rank()) works.back()->poll();
    }
    works.clear();
    for (const float sum : shards) {
      if (sum != 10) throw Error(fmt::format("a sum of {}", sum));
    }
  });
  for (const std::string& outcome : outcomes) EXPECT_EQ(outcome, "");
}

/// Notes collectives that are not checked as those of their tag are: odd ids are.
class NotesChecks final : public WrappedCommunicator {
 public:
  NotesChecks(std::shared_ptr<Communicator> inner, std::atomic<int>& wrong)
      : WrappedCommunicator(std::move(inner)), wrong_(wrong) {}

  void set_checking(bool checking) override { checking_ = checking; }
  WorkPtr all_gather(const void* shard, void* whole, std::int64_t bytes, Tag tag) override {
    note(tag);
    return inner_->all_gather(shard, whole, bytes, tag);
  }
  WorkPtr reduce_scatter(const void* whole, void* out, std::int64_t numel, DType in, DType to, bool accumulate, Tag tag,
                         OnReduced on_reduced) override {
    note(tag);
    return inner_->reduce_scatter(whole, out, numel, in, to, accumulate, tag, std::move(on_reduced));
  }
  WorkPtr all_reduce(void* data, std::int64_t numel, DType dtype, Tag tag, OnReduced on_reduced) override {
    note(tag);
    return inner_->all_reduce(data, numel, dtype, tag, std::move(on_reduced));
  }
  WorkPtr broadcast(void* data, std::int64_t bytes, int root, Tag tag) override {
    note(tag);
    return inner_->broadcast(data, bytes, root, tag);
  }
  WorkPtr all_to_all(const void* sent, void* received, const PartBytes& part_bytes, Tag tag) override {
    note(tag);
    return inner_->all_to_all(sent, received, part_bytes, tag);
  }
  void barrier(Tag tag) override { inner_->barrier(tag); }

 private:
  void note(Tag tag) { wrong_ += checking_ != (tag.id % 2 == 1); }

  std::atomic<int>& wrong_;
  bool checking_ = true;
};

// Catches collectives that are still unchecked after the last scope, or checked again when the first of two scopes that
// overlap ends.
TEST(UncheckedScope, EndsWithTheLastOne) {
  std::atomic<int> wrong = 0;
  NotesChecks communicator(std::move(make_thread_communicators(1, kRankTimeout)[0]), wrong);
  const auto gather = [&](int id) {
    int mine = id;
    int all = 0;
    communicator.all_gather(&mine, &all, sizeof(int), {"checked if odd", id})->wait();
  };
  gather(1);
  std::optional<UncheckedScope> first(std::in_place, communicator);
  gather(2);
  {
    const UncheckedScope second(communicator);
    first.reset();
    gather(4);
  }
  gather(3);
  EXPECT_EQ(wrong, 0);
}

// Catches a rank that checks a stage, and waits for what the others say of it, where they do not: who starts a stage
// late may have been told otherwise meanwhile.
TEST(HostsCommunicator, StagesAreCheckedAsTheirCollectiveIs) {
  for (const bool deterministic : {true, false}) {
    std::atomic<int> wrong = 0;
    const auto noting = [&](std::unique_ptr<Communicator> plain, int rank) -> std::unique_ptr<Communicator> {
      auto slow =
          make_fault_communicator(std::move(plain), random_delays(static_cast<std::uint64_t>(rank), microseconds(50)),
                                  /*two_sided=*/true);
      return std::make_unique<NotesChecks>(std::move(slow), wrong);
    };
    const auto outcomes = run_threads(make_grid({2, 2}, kRankTimeout, deterministic, noting), [](Communicator& c) {
      std::vector<float> whole(4 * 300, 1);
      std::vector<float> shards(40 * 300);
      std::vector<WorkPtr> works;
      for (int i = 0; i < 40; ++i) {
        c.set_checking(i % 2 == 1);
        works.push_back(c.reduce_scatter(whole.data(), shards.data() + i * 300, 300, DType::kFloat32, DType::kFloat32,
                                         false, {"sum", i}, {}));
      }
      works.clear();
    });
    for (const std::string& outcome : outcomes) EXPECT_EQ(outcome, "");
    EXPECT_EQ(wrong, 0);
  }
}

/// What one rank of each host gets from other hosts in `call`, by host: threads count what they copy.
std::vector<std::int64_t> bytes_from_other_hosts(const HostGrid& grid, bool deterministic, const RankBody& call) {
  std::vector<std::int64_t> bytes(static_cast<std::size_t>(grid.hosts));
  const auto outcomes = run_threads(make_grid(grid, kRankTimeout, deterministic), [&](Communicator& c) {
    c.barrier({"begin"});
    const std::int64_t before = c.bytes_between_hosts();
    call(c);
    if (grid.local_of(c.rank()) != 1) return;
    bytes[static_cast<std::size_t>(grid.host_of(c.rank()))] = c.bytes_between_hosts() - before;
  });
  for (const std::string& outcome : outcomes) EXPECT_EQ(outcome, "");
  return bytes;
}

constexpr std::int64_t kNumel = 1000;  // of a shard

RankBody reduction(DType dtype, DType out_dtype) {
  return [=](Communicator& c) {
    std::vector<double> whole(static_cast<std::size_t>(kNumel * c.size()));
    std::vector<double> out(kNumel);
    c.reduce_scatter(whole.data(), out.data(), kNumel, dtype, out_dtype, false, {"sum"}, {})->wait();
  };
}

// Catches bytes that cross between hosts once for each rank of a host, and routes that are not those of choose_routes.
TEST(HostsCommunicator, SendsBetweenHostsWhatItMust) {
  using enum DType;
  const auto gather = [](Communicator& c) {
    std::vector<std::byte> whole(static_cast<std::size_t>(kNumel * c.size()));
    c.all_gather(whole.data() + c.rank() * kNumel, whole.data(), kNumel, {"gather"})->wait();
  };
  using Bytes = std::vector<std::int64_t>;
  EXPECT_EQ(bytes_from_other_hosts({3, 2}, true, gather), Bytes({2 * kNumel, 2 * kNumel, 2 * kNumel}));
  // Two ranks of fp32 on each of two hosts: host 0 sends its sum of host 1's shard, and gets the terms of its own.
  EXPECT_EQ(bytes_from_other_hosts({2, 2}, true, reduction(kFloat32, kFloat32)), Bytes({8 * kNumel, 4 * kNumel}));
  // Of bf16: two terms are as long as a sum.
  EXPECT_EQ(bytes_from_other_hosts({2, 2}, true, reduction(kBFloat16, kFloat32)), Bytes({4 * kNumel, 4 * kNumel}));
  // Four ranks: sums go from host to host, and from the last one to those that are not its neighbors.
  EXPECT_EQ(bytes_from_other_hosts({3, 4}, true, reduction(kFloat32, kFloat32)),
            Bytes({4 * kNumel, (3 + 1) * 4 * kNumel, 3 * 4 * kNumel}));
  EXPECT_EQ(bytes_from_other_hosts({3, 4}, false, reduction(kBFloat16, kFloat32)),
            Bytes({2 * 4 * kNumel, 2 * 4 * kNumel, 2 * 4 * kNumel}));
}

// Catches a reduction in free order that loses or doubles terms, rounds twice, or adds to what it should replace.
TEST(HostsCommunicator, SumsByHostsWhereTheOrderIsFree) {
  const auto outcomes =
      run_threads(make_grid({3, 2}, kRankTimeout, /*deterministic_reduction=*/false), [](Communicator& c) {
        const auto term = [](int rank, std::int64_t i) {
          return std::ldexp(1.0f + static_cast<float>(i % 5), rank * 5);
        };
        const auto sum_of_host = [&](int host, std::int64_t i) { return term(2 * host, i) + term(2 * host + 1, i); };
        std::vector<float> whole(6 * 100);
        for (std::int64_t i = 0; i < 600; ++i) whole[static_cast<std::size_t>(i)] = term(c.rank(), i);
        std::vector<float> out(100, 0.5f);
        std::int64_t told = 0;
        c.reduce_scatter(whole.data(), out.data(), 100, DType::kFloat32, DType::kFloat32, /*accumulate=*/true, {"sum"},
                         [&](std::int64_t, std::int64_t numel) { told += numel; })
            ->wait();
        if (told != 100) throw Error("not told of all elements");
        for (std::int64_t i = 0; i < 100; ++i) {
          const std::int64_t at = c.rank() * 100 + i;
          const float expected = 0.5f + ((sum_of_host(0, at) + sum_of_host(1, at)) + sum_of_host(2, at));
          if (out[static_cast<std::size_t>(i)] != expected) throw Error(fmt::format("element {}: {}", at, out[0]));
        }
      });
  for (const std::string& outcome : outcomes) EXPECT_EQ(outcome, "");
}

/// What rank `rank` has for element `at` of all shards; bf16 has each of them.
float gradient(int rank, std::int64_t at) { return static_cast<float>((at * 37 + rank * 11) % 63 - 31) / 16.0F; }

SumCodec codec_of(std::int64_t numel) {
  const auto parts = [numel](std::int64_t count) {
    return optim::CodedParts{optim::BlockCode::kInt4, DType::kFloat32, numel, count};
  };
  return {parts(1).part_bytes(),
          [=](const std::byte* values, std::int64_t count, std::byte* codes) {
            optim::encode_blocks(parts(count), values, codes);
          },
          [=](const std::byte* codes, std::int64_t count, std::byte* values) {
            optim::decode_blocks(parts(count), codes, values);
          }};
}

/// One part as its codes say it.
std::vector<float> as_coded(std::vector<float> values) {
  optim::round_to_blocks(optim::BlockCode::kInt4, DType::kFloat32, values.data(), values.data(),
                         static_cast<std::int64_t>(values.size()));
  return values;
}

struct CodedSum {
  std::vector<float> sum;    ///< as it must be
  std::vector<float> exact;  ///< without codes
  std::vector<float> bound;  ///< of their difference
};

constexpr std::int64_t kCodedNumel = 1100;  // of a shard: the last block is not full

CodedSum expected_coded_sum(const HostGrid& grid, int owner) {
  constexpr std::int64_t kBlock = optim::block_numel_of(optim::BlockCode::kInt4);
  CodedSum result;
  result.sum = result.exact = result.bound = std::vector<float>(kCodedNumel);
  for (int host = 0; host < grid.hosts; ++host) {
    std::vector<float> of_host(kCodedNumel);
    std::vector<float> largest(static_cast<std::size_t>(kCodedNumel / kBlock + 1));
    for (std::int64_t i = 0; i < kCodedNumel; ++i) {
      float& value = of_host[static_cast<std::size_t>(i)];
      for (int local = 0; local < grid.local_size; ++local) {
        value += gradient(grid.rank_at(host, local), owner * kCodedNumel + i);
      }
      float& scale = largest[static_cast<std::size_t>(i / kBlock)];
      scale = std::max(scale, std::abs(value));
    }
    const auto coded = as_coded(of_host);
    for (std::size_t i = 0; i < coded.size(); ++i) {
      result.sum[i] = host == 0 ? coded[i] : result.sum[i] + coded[i];
      result.exact[i] += of_host[i];
      result.bound[i] += largest[i / kBlock] / 7 / 2 * 1.00001F;
    }
  }
  return result;
}

class CodedSumsOfHosts : public testing::TestWithParam<HostGrid> {};
INSTANTIATE_TEST_SUITE_P(Grids, CodedSumsOfHosts, testing::Values(HostGrid{2, 2}, HostGrid{3, 2}, HostGrid{2, 3}));

// Catches codes of single ranks' terms, sums that are coded twice or that depend on where their owner is, other orders
// of addition, errors beyond half a scale of each host, and more bytes between hosts than one host's codes.
TEST_P(CodedSumsOfHosts, AreThoseOfTheProtocol) {
  const HostGrid grid = GetParam();
  const auto slow = [](std::unique_ptr<Communicator> plain, int rank) {
    return make_fault_communicator(std::move(plain), random_delays(static_cast<std::uint64_t>(rank), microseconds(50)),
                                   /*two_sided=*/true);
  };
  for (const bool deterministic : {true, false}) {
    const auto outcomes = run_threads(make_grid(grid, kRankTimeout, deterministic, slow), [&](Communicator& c) {
      if (!c.sums_by_hosts()) throw Error("does not sum by hosts");
      const auto expected = expected_coded_sum(grid, c.rank());
      for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
        std::vector<float> wide(static_cast<std::size_t>(kCodedNumel * c.size()));
        for (std::size_t i = 0; i < wide.size(); ++i) wide[i] = gradient(c.rank(), static_cast<std::int64_t>(i));
        std::vector<std::byte> whole(wide.size() * static_cast<std::size_t>(element_bytes(dtype)));
        optim::from_float32(wide.data(), whole.data(), dtype, static_cast<std::int64_t>(wide.size()));
        std::vector<float> out(kCodedNumel, 0.25F);
        std::int64_t told = 0;
        c.barrier({"begin"});
        const std::int64_t before = c.bytes_between_hosts();
        c.reduce_scatter_in_codes(
             whole.data(), out.data(), kCodedNumel, dtype, DType::kFloat32, /*accumulate=*/true, {"sum"},
             [&](std::int64_t, std::int64_t numel) { told += numel; }, codec_of(kCodedNumel))
            ->wait();
        if (told != kCodedNumel) throw Error("not told of all elements");
        const std::int64_t sent = c.bytes_between_hosts() - before;
        if (sent != (grid.hosts - 1) * optim::coded_bytes(optim::BlockCode::kInt4, kCodedNumel)) {
          throw Error(fmt::format("{} bytes between hosts", sent));
        }
        for (std::size_t i = 0; i < out.size(); ++i) {
          if (out[i] != 0.25F + expected.sum[i]) throw Error(fmt::format("element {}: {}", i, out[i]));
          const float error = std::abs(expected.sum[i] - expected.exact[i]);
          if (error > expected.bound[i]) throw Error(fmt::format("element {}: an error of {}", i, error));
        }
      }
    });
    for (const std::string& outcome : outcomes) EXPECT_EQ(outcome, "");
  }
}

// Catches a protocol that loses more than one without hosts, where each rank's terms are coded.
TEST(HostsCommunicator, CodesOfHostsLoseLessThanCodesOfRanks) {
  const HostGrid grid{2, 4};
  double lost_by_hosts = 0;
  double lost_by_ranks = 0;
  for (int owner = 0; owner < grid.size(); ++owner) {
    const CodedSum by_hosts = expected_coded_sum(grid, owner);
    const CodedSum by_ranks = expected_coded_sum({grid.size(), 1}, owner);
    for (std::size_t i = 0; i < by_hosts.sum.size(); ++i) {
      EXPECT_LE(by_hosts.bound[i], by_ranks.bound[i]);
      lost_by_hosts += std::abs(by_hosts.sum[i] - by_hosts.exact[i]);
      lost_by_ranks += std::abs(by_ranks.sum[i] - by_ranks.exact[i]);
    }
  }
  EXPECT_LT(lost_by_hosts, 0.9 * lost_by_ranks);
}

// Catches the sum of a whole page in place (stage 1) that reads what has been overwritten, and an overflow that codes
// hide.
TEST(HostsCommunicator, SumsInCodesInPlaceAndShowsOverflows) {
  const HostGrid grid{2, 2};
  const auto outcomes = run_threads(make_grid(grid, kRankTimeout), [&](Communicator& c) {
    std::vector<float> whole(static_cast<std::size_t>(kCodedNumel * c.size()));
    for (std::size_t i = 0; i < whole.size(); ++i) whole[i] = gradient(c.rank(), static_cast<std::int64_t>(i));
    if (c.rank() == 3) whole[200] = std::numeric_limits<float>::infinity();
    float* const own = whole.data() + c.rank() * kCodedNumel;
    c.reduce_scatter_in_codes(whole.data(), own, kCodedNumel, DType::kFloat32, DType::kFloat32, false, {"sum"}, {},
                              codec_of(kCodedNumel))
        ->wait();
    const auto expected = expected_coded_sum(grid, c.rank());
    for (std::int64_t i = 0; i < kCodedNumel; ++i) {
      const bool hidden = c.rank() == 0 && i / 128 == 200 / 128;
      if (hidden ? std::isfinite(own[i]) : own[i] != expected.sum[static_cast<std::size_t>(i)]) {
        throw Error(fmt::format("element {}: {}", i, own[i]));
      }
    }
    c.barrier({"done"});
  });
  for (const std::string& outcome : outcomes) EXPECT_EQ(outcome, "");
}

// Catches an error of one host that other hosts learn only from their timeout, or whose ranks mean nothing to a reader.
TEST(HostsCommunicator, AnAbortReachesAllHosts) {
  const auto begin = Clock::now();
  const auto outcomes = run_threads(make_grid({2, 2}, kRankTimeout), [](Communicator& c) {
    c.barrier({"begin"});
    if (c.rank() == 3) c.abort("disk full");
    for (;;) c.barrier({"work"});
  });
  for (const std::string& outcome : outcomes) {
    EXPECT_TRUE(outcome.starts_with("PeerError: among ")) << outcome;
    EXPECT_TRUE(contains(outcome, "rank 3 of the job: disk full")) << outcome;
  }
  EXPECT_LT(Clock::now() - begin, kRankTimeout / 4);
}

// Catches ranks of other hosts that wait for ever for one that does not come, and a message that does not say where.
TEST(HostsCommunicator, ALateRankEndsTheOthers) {
  const auto outcomes = run_threads(make_grid({2, 2}, kShort), [](Communicator& c) {
    c.barrier({"begin"});
    if (c.rank() == 1) return;
    std::vector<float> data(4000);
    c.all_reduce(data.data(), 4000, DType::kFloat32, {"norm"}, {})->wait();
  });
  EXPECT_EQ(outcomes[1], "");
  for (const int r : {0, 2, 3}) EXPECT_FALSE(outcomes[static_cast<std::size_t>(r)].empty());
  EXPECT_TRUE(
      contains(outcomes[0], "among the ranks of host 0, whose rank 0 is rank 0 of the job: rank 0 waited 500 ms"))
      << outcomes[0];
  // Rank 2 waits for rank 3, which waits for rank 1: whichever notices first says where.
  EXPECT_TRUE(
      contains(outcomes[2], "of the job, one per host and counted from 0: rank ") ||
      contains(outcomes[2], "among the ranks of host 1, whose rank 0 is rank 2 of the job: rank 0 waited 500 ms"))
      << outcomes[2];
}

// Catches a collective that a rank drops by an exception, and that writes into its buffers later.
TEST(HostsCommunicator, AnExceptionDropsACollective) {
  const auto outcomes = run_threads(make_grid({2, 2}, kRankTimeout), [](Communicator& c) {
    c.barrier({"begin"});
    if (c.rank() == 0) {
      std::vector<float> data(100000);
      const auto work = c.all_reduce(data.data(), 100000, DType::kFloat32, {"sum"}, {});
      throw Error("the loss is NaN");
    }
    std::vector<float> data(100000);
    c.all_reduce(data.data(), 100000, DType::kFloat32, {"sum"}, {})->wait();
  });
  EXPECT_EQ(outcomes[0], "the loss is NaN");
  for (const int r : {1, 2, 3}) {
    EXPECT_TRUE(contains(outcomes[static_cast<std::size_t>(r)], "an error ended a collective")) << outcomes[1];
  }
}

// Catches arguments that would read outside buffers, or sums that have no meaning.
TEST(HostsCommunicator, RefusesArgumentsThatMakeNoSense) {
  const auto outcomes = run_threads(make_grid({2, 2}, kShort), [](Communicator& c) {
    std::byte data[64] = {};
    const auto refused = [](const std::function<void()>& call) { return outcome_of(call).starts_with("UsageError"); };
    const bool all = refused([&] { c.all_gather(data, data, -1, {}); }) &&
                     refused([&] { c.broadcast(data, 8, 4, {}); }) &&
                     refused([&] { c.all_reduce(data, 8, DType::kOther, {}, {}); }) &&
                     refused([&] { c.all_to_all(data, data, [](int, int) { return -1; }, {}); }) &&
                     refused([&] { c.peer_address(1, data); });
    if (!all) throw Error("accepted");
    c.barrier({"still usable"});
  });
  for (const std::string& outcome : outcomes) EXPECT_EQ(outcome, "");
}

}  // namespace
}  // namespace zeropage::comm
