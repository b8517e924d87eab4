#include "zeropage/launch/cores.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "zeropage/base/error.h"

namespace zeropage::launch {
namespace {

using Cores = std::vector<int>;

TEST(Cores, ListsAndRanges) {
  EXPECT_EQ(parse_core_list("0"), Cores({0}));
  EXPECT_EQ(parse_core_list("0,2-5"), Cores({0, 2, 3, 4, 5}));
  EXPECT_EQ(parse_core_list("7,3-3,1"), Cores({7, 3, 1})) << "the order is the user's";
}

TEST(Cores, JunkIsRefused) {
  for (const char* list :
       {"", ",", "1,", ",1", "a", "1-", "-1", "3-1", "1--2", "1 ,2", "0x1", "1.5", "99999999999", "1,1", "0-2,2"}) {
    EXPECT_THROW(parse_core_list(list), ConfigError) << "'" << list << "'";
  }
}

TEST(Cores, SharesAreEqualAndDisjoint) {
  EXPECT_EQ(share_cores({0, 1, 2, 3, 4, 5, 6}, 3), std::vector<Cores>({{0, 1}, {2, 3}, {4, 5}}));
  EXPECT_EQ(share_cores({4, 2}, 2), std::vector<Cores>({{4}, {2}}));
  EXPECT_THROW(share_cores({0, 1}, 3), ConfigError);
}

// Catches ranks that share arithmetic units: Linux numbers the hyperthreads of the first half of the cores as the
// second half.
TEST(Cores, OneThreadPerUnit) {
  const std::filesystem::path sysfs = std::filesystem::path(::testing::TempDir()) / "cores_test_sysfs";
  for (int core = 0; core < 4; ++core) {
    const auto folder = sysfs / ("cpu" + std::to_string(core)) / "topology";
    std::filesystem::create_directories(folder);
    std::ofstream(folder / "thread_siblings_list") << core % 2 << "," << core % 2 + 2 << "\n";
  }
  EXPECT_EQ(one_per_unit({0, 1, 2, 3}, sysfs), Cores({0, 1}));
  EXPECT_EQ(one_per_unit({2, 3}, sysfs), Cores({2, 3})) << "one thread of each remains in an unusual selection, too";
  EXPECT_EQ(one_per_unit({8, 9}, sysfs), Cores({8, 9})) << "nothing known: keep all";
  std::filesystem::remove_all(sysfs);
}

TEST(Cores, ThisProcessMayUseSome) { EXPECT_FALSE(allowed_cores().empty()); }

}  // namespace
}  // namespace zeropage::launch
