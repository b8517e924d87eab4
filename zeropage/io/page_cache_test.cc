#include "zeropage/io/page_cache.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <numeric>

#include "zeropage/io/test_store.h"

namespace zeropage::io {
namespace {

constexpr std::int64_t kPageBytes = 64 * 1024;
constexpr int kPages = 7;

class PageCacheTest : public testing::Test {
 protected:
  PageCache make(FaultHook hook = nullptr, bool two_slots = true) {
    StoreOptions options{.folders = {folder_.path()}, .block_bytes = 16 * 1024, .buffer_count = 3};
    if (hook) options.wrap_queue = with_faults(std::move(hook));
    std::vector<ExtentSpec> pages;
    for (int page = 0; page < kPages; ++page) pages.push_back({"page " + std::to_string(page), kPageBytes, two_slots});
    pages[2].bytes = 0;
    return PageCache("test pages", std::move(options), std::move(pages), std::make_shared<Ledger>());
  }

  static void put(PageCache& cache, int page, int version) {
    const auto bytes = cache.acquire(page, Fill::kZeros);
    for (std::int64_t i = 0; i < kPageBytes; ++i) bytes[static_cast<std::size_t>(i)] = content(page, version, i);
    cache.release(page, true);
  }

  static bool has(PageCache& cache, int page, int version) {
    const auto bytes = cache.acquire(page);
    bool same = true;
    for (std::int64_t i = 0; i < kPageBytes; ++i)
      same &= bytes[static_cast<std::size_t>(i)] == content(page, version, i);
    cache.release(page, false);
    return same;
  }

  static std::vector<int> pages() { return {0, 1, 3, 4, 5, 6}; }

  TestFolder folder_;
};

// Would catch pages that are read as another page or version, in passes in either direction and in two passes of one
// step.
TEST_F(PageCacheTest, KeepsWhatPassesWrite) {
  PageCache cache = make();
  EXPECT_FALSE(cache.has(2));
  EXPECT_EQ(cache.acquire(3)[17], std::byte{0}) << "it was never written";
  cache.release(3, false);
  auto order = pages();
  for (int version = 1; version < 9; ++version) {
    cache.begin_pass(order);
    for (const int page : order) {
      if (version > 1) {
        EXPECT_TRUE(has(cache, page, version - 1)) << page;
      }
      put(cache, page, version);
    }
    cache.end_pass();
    if (version % 2 == 0) cache.commit();
    std::ranges::reverse(order);
  }
  for (const int page : pages()) EXPECT_TRUE(has(cache, page, 8));
}

// Would catch changes of an abandoned step that remain in a buffer or on the drive.
TEST_F(PageCacheTest, AbandonGoesBackToTheCommittedState) {
  PageCache cache = make();
  for (const int page : pages()) put(cache, page, 1);
  for (int round = 0; round < 3; ++round) {
    cache.begin_pass(pages());
    for (const int page : {0, 1, 3, 4}) put(cache, page, 2 + round);
    cache.abandon();
    for (const int page : pages()) EXPECT_TRUE(has(cache, page, 1)) << page;
  }
}

// Would catch a failed background write that is not reported, or that damages the active state.
TEST_F(PageCacheTest, AWriteThatFailsBehindIsSeenAtTheEndOfThePass) {
  int failing = 0;
  PageCache cache = make([&](const Request& request) -> std::optional<Fault> {
    if (!request.write || failing == 0 || --failing > 0) return std::nullopt;
    return Fault{.result = -EIO};
  });
  for (const int page : pages()) put(cache, page, 1);
  failing = 5;
  EXPECT_THROW(
      {
        cache.begin_pass(pages());
        for (const int page : pages()) put(cache, page, 2);
        cache.end_pass();
      },
      IoError);
  cache.abandon();
  for (const int page : pages()) EXPECT_TRUE(has(cache, page, 1)) << page;
}

// Would catch pages that are announced and not read, or read twice: each announced page is read once.
TEST_F(PageCacheTest, ReadsAheadWhatWasAnnounced) {
  PageCache cache = make();
  for (const int page : pages()) put(cache, page, 1);
  const std::int64_t before = cache.stats().read_bytes;
  for (int round = 0; round < 2; ++round) {
    for (const int page : pages()) {
      cache.read_ahead({page, page + 1 == 2 ? 3 : std::min(page + 1, kPages - 1)});
      EXPECT_TRUE(has(cache, page, 1));
    }
  }
  EXPECT_LE(cache.stats().read_bytes - before, 12 * kPageBytes);
  cache.acquire(0);
  cache.acquire(1);
  cache.acquire(3);
  EXPECT_THROW(cache.acquire(4), UsageError) << "three buffers, all of them held";
  cache.release(0, false);
  cache.acquire(4, Fill::kZeros);
  cache.release(4, false);
  EXPECT_TRUE(has(cache, 4, 1)) << "nothing was written in the end";
}

}  // namespace
}  // namespace zeropage::io
