// Frames: reuse, limits, and their entries in the ledger.
#include "zeropage/paging/frame_pool.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "zeropage/base/error.h"
#include "zeropage/comm/thread_communicator.h"

namespace zeropage::paging {
namespace {

constexpr std::int64_t kKiB = 1024;
constexpr std::int64_t kMiB = 1024 * kKiB;
const c10::Device kHost(c10::kCPU);

std::int64_t held_bytes(const Ledger& ledger) { return ledger.current_bytes(MemoryKind::kFrames); }

// Catches memory that is mapped again in every step.
TEST(PrivateFrames, AreReused) {
  auto ledger = std::make_shared<Ledger>();
  auto pool = make_private_frame_pool(kHost, 10 * kMiB, ledger, MemoryKind::kFrames);
  std::byte* first = pool->acquire(kMiB);
  pool->release(first);
  EXPECT_EQ(pool->acquire(kMiB), first);
  EXPECT_EQ(held_bytes(*ledger), kMiB);
}

// Catches small pages in large frames, which use up the limit.
TEST(PrivateFrames, AreNotMuchLargerThanAskedFor) {
  auto ledger = std::make_shared<Ledger>();
  auto pool = make_private_frame_pool(kHost, 10 * kMiB, ledger, MemoryKind::kFrames);
  std::byte* large = pool->acquire(kMiB);
  pool->release(large);
  EXPECT_NE(pool->acquire(kMiB / 2), large);
  EXPECT_EQ(pool->acquire(kMiB - 100), large);
}

// Catches unused frames that are kept beyond the limit.
TEST(PrivateFrames, UnusedOnesGoWhenTheLimitIsReached) {
  auto ledger = std::make_shared<Ledger>();
  auto pool = make_private_frame_pool(kHost, 2 * kMiB, ledger, MemoryKind::kFrames);
  std::byte* small = pool->acquire(kMiB / 2);
  std::byte* large = pool->acquire(3 * kMiB / 2);
  pool->release(small);
  pool->release(large);
  pool->acquire(kMiB);
  EXPECT_LE(held_bytes(*ledger), 2 * kMiB + kMiB);
  pool->trim();
  EXPECT_EQ(held_bytes(*ledger), kMiB);
}

struct SharedPool {
  explicit SharedPool(std::int64_t capacity_bytes)
      : communicator(std::move(comm::make_thread_communicators(1, std::chrono::seconds(1)).front())),
        pool(make_shared_frame_pool(*communicator, capacity_bytes, ledger, MemoryKind::kFrames)) {}
  std::shared_ptr<Ledger> ledger = std::make_shared<Ledger>();
  std::unique_ptr<comm::Communicator> communicator;
  std::unique_ptr<FramePool> pool;
};

// Catches gaps that are not joined again: after some steps no frame would fit.
TEST(SharedFrames, HolesAreJoined) {
  SharedPool shared(64 * kKiB);
  std::vector<std::byte*> frames;
  for (int i = 0; i < 4; ++i) frames.push_back(shared.pool->acquire(16 * kKiB));
  EXPECT_THROW(shared.pool->acquire(1), Error);
  for (int i : {1, 3, 0, 2}) shared.pool->release(frames[i]);
  EXPECT_EQ(shared.pool->acquire(64 * kKiB), frames[0]);
}

// Catches a ledger that counts address space, or omits memory that is still allocated.
TEST(SharedFrames, LedgerCountsWhatIsTouched) {
  SharedPool shared(kMiB);
  EXPECT_EQ(held_bytes(*shared.ledger), 0);
  std::byte* first = shared.pool->acquire(10 * kKiB);
  std::byte* second = shared.pool->acquire(4 * kKiB);
  EXPECT_EQ(held_bytes(*shared.ledger), 16 * kKiB);
  shared.pool->release(second);
  EXPECT_EQ(held_bytes(*shared.ledger), 16 * kKiB);
  shared.pool->trim();
  EXPECT_EQ(held_bytes(*shared.ledger), 12 * kKiB);
  shared.pool->release(first);
  shared.pool->trim();
  EXPECT_EQ(held_bytes(*shared.ledger), 0);
}

// Catches frames that overlap, in any order of acquiring and releasing.
TEST(SharedFrames, NeverOverlap) {
  SharedPool shared(kMiB);
  std::mt19937 random(7);
  struct Frame {
    std::byte* data;
    std::int64_t bytes;
    unsigned char value;
  };
  std::vector<Frame> frames;
  for (int round = 0; round < 2000; ++round) {
    if (frames.size() < 12 && random() % 2 == 0) {
      const std::int64_t bytes = 1 + random() % (24 * kKiB);
      Frame frame{shared.pool->acquire(bytes), bytes, static_cast<unsigned char>(random())};
      std::memset(frame.data, frame.value, bytes);
      frames.push_back(frame);
    } else if (!frames.empty()) {
      const std::size_t index = random() % frames.size();
      const Frame frame = frames[index];
      for (std::int64_t i = 0; i < frame.bytes; i += 512) {
        ASSERT_EQ(static_cast<unsigned char>(frame.data[i]), frame.value);
      }
      shared.pool->release(frame.data);
      frames.erase(frames.begin() + static_cast<std::ptrdiff_t>(index));
    }
    if (round % 100 == 0) shared.pool->trim();
  }
}

}  // namespace
}  // namespace zeropage::paging
