// Which ranks form a grid of hosts, and the routes of sums between hosts.
#include "zeropage/comm/hosts/host_grid.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace zeropage::comm {
namespace {

using enum TermRoute;
using Routes = std::vector<TermRoute>;

// Catches ranks that are treated as a grid but form none: ranks assigned to hosts in turn, hosts of different sizes.
TEST(HostGrid, RanksOfAHostFollowEachOther) {
  EXPECT_EQ(column_count({5, 1, 8, 4}), 4);
  EXPECT_EQ(column_count({5, 2, 8, 4}), 0);  // dealt out in turn
  EXPECT_EQ(column_count({2, 2, 8, 3}), 0);  // 3, 3 and 2
  EXPECT_EQ(column_count({1, 0, 2, 1}), 1);
  EXPECT_FALSE((HostGrid{2, 1}.is_useful()));
  EXPECT_FALSE((HostGrid{1, 2}.is_useful()));
}

// Catches a route that sends more than another one would, or than every rank sending its terms to every other.
TEST(TermRoute, FewestBytesBetweenHosts) {
  for (const DType dtype : {DType::kBFloat16, DType::kFloat32, DType::kFloat64}) {
    for (int hosts = 2; hosts < 6; ++hosts) {
      for (int local_size = 2; local_size < 10; ++local_size) {
        const HostGrid grid{hosts, local_size};
        const Routes routes = choose_routes(grid, dtype);
        for (int owner = 0; owner < hosts; ++owner) {
          const auto bytes = [&](TermRoute route) { return bytes_between_hosts(route, grid, owner, dtype); };
          EXPECT_EQ(bytes(routes[static_cast<std::size_t>(owner)]),
                    std::min({bytes(kTerms), bytes(kSumsThenTerms), bytes(kSums)}));
        }
      }
    }
  }
}

// Catches formulas of bytes that differ from the messages: each hop and each host's terms are counted one by one.
TEST(TermRoute, BytesAreThoseOfTheMessages) {
  const HostGrid grid{4, 3};
  for (const TermRoute route : {kTerms, kSumsThenTerms, kSums}) {
    for (int owner = 0; owner < grid.hosts; ++owner) {
      std::int64_t bytes = 0;
      for (int from = 0; from < grid.hosts; ++from) {
        if (sends_terms(route, owner, from)) bytes += 3 * 2;
        if (passes_on(route, grid, owner, from)) bytes += 4;
      }
      if (route == kSums && owner != grid.hosts - 1) bytes += 4;  // from the last host to the owner
      EXPECT_EQ(bytes_between_hosts(route, grid, owner, DType::kBFloat16), bytes);
    }
  }
}

// Catches a chain although terms are as short as a sum, and terms although they are longer.
TEST(TermRoute, ByTheSizesOfTermsAndSums) {
  EXPECT_EQ(choose_routes({2, 2}, DType::kBFloat16), Routes({kTerms, kTerms}));
  EXPECT_EQ(choose_routes({2, 2}, DType::kFloat32), Routes({kTerms, kSumsThenTerms}));
  EXPECT_EQ(choose_routes({2, 8}, DType::kBFloat16), Routes({kSums, kSumsThenTerms}));
  EXPECT_EQ(choose_routes({3, 8}, DType::kFloat32), Routes({kSums, kSums, kSumsThenTerms}));
  // 12 hosts' flat bytes per element, and the remaining bytes.
  std::int64_t sent = 0;
  for (int owner = 0; owner < 2; ++owner) {
    sent += bytes_between_hosts(choose_routes({2, 8}, DType::kBFloat16)[static_cast<std::size_t>(owner)], {2, 8}, owner,
                                DType::kBFloat16);
  }
  EXPECT_EQ(sent, 12);  // of 2 * 16
}

}  // namespace
}  // namespace zeropage::comm
