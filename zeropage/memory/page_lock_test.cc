// Tests of page-locked buffers, with a lock that records its calls.
#include "zeropage/memory/page_lock.h"

#include <gtest/gtest.h>

#include <map>

#include "zeropage/base/error.h"
#include "zeropage/memory/device_buffer.h"

namespace zeropage::memory {
namespace {

std::map<void*, std::size_t> locked;
int answer = 0;
int forgotten = 0;

int note_lock(void* data, std::size_t bytes, unsigned) {
  if (answer == 0) locked[data] = bytes;
  return answer;
}

int note_unlock(void* data) {
  *static_cast<volatile std::byte*>(data) = std::byte{1};  // it must still be mapped
  locked.erase(data);
  return 0;
}

const char* describe(int) { return "no more pages"; }

int note_forget() { return ++forgotten; }

class PageLocks : public testing::Test {
 protected:
  PageLocks() {
    answer = 0;
    forgotten = 0;
    set_page_lock(&kLock);
  }
  ~PageLocks() override { set_page_lock(nullptr); }

  static constexpr PageLock kLock{&note_lock, &note_unlock, &describe, &note_forget};
  const MemoryPlace pinned_{c10::Device(c10::kCPU), Tier::kHost, /*pinned=*/true};
  const std::shared_ptr<Ledger> ledger_ = std::make_shared<Ledger>();
};

// Catches a buffer that is rounded up to a power of two, is locked in part, is not zero, or is unlocked after it is
// unmapped or never.
TEST_F(PageLocks, AreHeldForAsManyBytesAsWereAskedFor) {
  constexpr std::int64_t kBytes = (5 << 20) + 100;
  {
    const DeviceBuffer buffer(kBytes, pinned_, ledger_, MemoryKind::kOptimizer);
    ASSERT_EQ(locked.size(), 1U);
    EXPECT_EQ(locked.begin()->first, buffer.data());
    EXPECT_EQ(locked.begin()->second, kBytes);
    EXPECT_EQ(ledger_->current_bytes(MemoryKind::kOptimizer, Tier::kHost), kBytes);
    EXPECT_EQ(buffer.data()[0], std::byte{0});
    EXPECT_EQ(buffer.data()[kBytes - 1], std::byte{0});
  }
  EXPECT_TRUE(locked.empty());
  const DeviceBuffer pageable(kBytes, {c10::Device(c10::kCPU), Tier::kHost}, ledger_, MemoryKind::kOptimizer);
  EXPECT_TRUE(locked.empty());
}

// Catches an ignored refusal, which would make every copy wait, and bytes that are still counted after it.
TEST_F(PageLocks, ARefusalIsAnError) {
  answer = 2;
  try {
    const DeviceBuffer buffer(4096, pinned_, ledger_, MemoryKind::kOptimizer);
    FAIL() << "it was refused";
  } catch (const IoError& error) {
    const std::string message = error.what();
    EXPECT_NE(message.find("4096 bytes"), message.npos) << message;
    EXPECT_NE(message.find("no more pages"), message.npos) << message;
    EXPECT_NE(message.find("pin_memory"), message.npos) << message;
  }
  EXPECT_EQ(ledger_->current_bytes(MemoryKind::kOptimizer, Tier::kHost), 0);
  EXPECT_EQ(forgotten, 1);  // else the next start of a kernel seems to fail
}

}  // namespace
}  // namespace zeropage::memory
