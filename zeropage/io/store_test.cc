#include "zeropage/io/store.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <thread>

#include "zeropage/io/test_store.h"

namespace zeropage::io {
namespace {

constexpr std::int64_t kBlock = 16 * 1024;

/// The message of what `action` throws; empty: nothing.
template <typename Expected>
std::string message_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Expected& error) {
    return error.what();
  }
  return "";
}

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

bool uring_permitted() {
  const TestFolder folder;
  try {
    Store({.folders = {folder.path()}, .queue = QueueKind::kUring}, {{"x", 1}});
    return true;
  } catch (const IoError&) {
    return false;
  }
}

class StoreTest : public testing::TestWithParam<QueueKind> {
 protected:
  void SetUp() override {
    if (GetParam() == QueueKind::kUring && !uring_permitted()) GTEST_SKIP() << "this system does not permit io_uring";
  }

  StoreOptions options(FaultHook hook = nullptr) {
    StoreOptions options{.folders = {folder_.path()}, .block_bytes = kBlock, .queue_depth = 4, .queue = GetParam()};
    if (hook) options.wrap_queue = with_faults(std::move(hook));
    return options;
  }

  TestFolder folder_;
};

INSTANTIATE_TEST_SUITE_P(Queues, StoreTest, testing::Values(QueueKind::kUring, QueueKind::kThreads),
                         [](const auto& info) { return info.param == QueueKind::kUring ? "uring" : "threads"; });

// Would catch wrong offsets, blocks that overlap, lost tails: every size around the limits of blocks and alignment,
// several extents transferred at the same time, striped over three folders.
TEST_P(StoreTest, KeepsEverySizeInEveryFolder) {
  const TestFolder second;
  const TestFolder third;
  StoreOptions wide = options();
  wide.folders.push_back(second.path());
  wide.folders.push_back(third.path());
  wide.buffer_count = 12;
  std::vector<ExtentSpec> extents;
  for (const std::int64_t bytes :
       {1L, 4095L, 4096L, 4097L, kBlock - 1, kBlock, kBlock + 1, 3 * kBlock, 5 * kBlock + 4100}) {
    extents.push_back({fmt::format("extent of {}", bytes), bytes});
  }
  extents.push_back({"empty", 0});
  Store store(wide, extents);
  const int count = static_cast<int>(extents.size());
  for (int version = 0; version < 3; ++version) {
    std::vector<Store::Ticket> tickets;
    for (int i = 0; i < count; ++i) {
      fill(store, i, i, version, extents[i].bytes);
      tickets.push_back(store.write(i, i));
    }
    for (const auto& ticket : tickets) store.wait(ticket);
    store.commit();
    for (int i = 0; i < count; ++i) EXPECT_TRUE(holds(store, i, version, extents[i].bytes, 11)) << extents[i].name;
  }
  EXPECT_EQ(store.reserved_bytes() % kAlignment, 0);
  EXPECT_GT(store.stats().written_bytes, 3 * 11 * kBlock);
}

// Would catch a write that destroys the active state before its step is committed.
TEST_P(StoreTest, CommitMakesAllWritesActiveAndAbandonNone) {
  Store store(options(), {{"a", 3 * kBlock}, {"b", kBlock}});
  write(store, 0, 1, 3 * kBlock);
  write(store, 1, 1, kBlock);
  store.commit();
  write(store, 0, 2, 3 * kBlock);
  EXPECT_TRUE(holds(store, 0, 2, 3 * kBlock)) << "the newest";
  write(store, 0, 9, 3 * kBlock);
  EXPECT_TRUE(holds(store, 0, 9, 3 * kBlock)) << "written twice in a step";
  store.abandon();
  EXPECT_TRUE(holds(store, 0, 1, 3 * kBlock));
  for (int version = 3; version < 7; ++version) {
    write(store, 0, version, 3 * kBlock);
    store.commit();
    EXPECT_TRUE(holds(store, 0, version, 3 * kBlock));
    EXPECT_TRUE(holds(store, 1, 1, kBlock)) << "b was not written";
  }
}

// Would catch an extent of one slot that is still readable after its write was discarded, and space of later extents
// that is not reserved or overlaps with earlier ones.
TEST_P(StoreTest, GrowsAndTakesExtentsOfOneSlot) {
  Store store(options(), {{"a", kBlock}, {"scratch", 2 * kBlock, /*two_slots=*/false}});
  EXPECT_EQ(store.reserved_bytes(), 4 * kBlock);
  const int added = store.add({"added", 2 * kBlock});
  EXPECT_EQ(store.reserved_bytes(), 8 * kBlock);
  EXPECT_FALSE(store.readable(1));
  for (int version = 1; version < 4; ++version) {
    write(store, 0, version, kBlock);
    write(store, 1, version, 2 * kBlock);
    write(store, added, version, 2 * kBlock);
    store.commit();
  }
  EXPECT_TRUE(holds(store, 0, 3, kBlock) && holds(store, 1, 3, 2 * kBlock) && holds(store, added, 3, 2 * kBlock));
  write(store, 1, 4, 2 * kBlock);
  EXPECT_TRUE(holds(store, 1, 4, 2 * kBlock));
  store.abandon();
  EXPECT_FALSE(store.readable(1));
  EXPECT_THROW(store.add({"too large", 3 * kBlock}), UsageError);
}

// Would catch misuse without an error: reads of state that was never written, or extents that are larger than a buffer.
TEST_P(StoreTest, RefusesWhatMakesNoSense) {
  Store store(options(), {{"layer 7", kBlock}});
  EXPECT_TRUE(has(message_of<UsageError>([&] { store.read(0, 0); }), "layer 7"));
  EXPECT_THROW(store.read(1, 0), UsageError);
  EXPECT_THROW(store.write(0, 99), UsageError);
  EXPECT_THROW(Store({.folders = {}}, {}), UsageError);
  EXPECT_THROW(Store({.folders = {folder_.path()}, .buffer_bytes = 4096}, {{"x", 4097}}), UsageError);
  EXPECT_TRUE(has(message_of<IoError>([&] {
                    Store({.folders = {"/no/such/folder"}}, {{"x", 1}});
                  }),
                  "/no/such/folder"));
}

// Would catch an ignored result: EIO of any request of a read or a write must become an error with a name, and must not
// change the active state.
TEST_P(StoreTest, EveryFailedRequestIsReported) {
  constexpr std::int64_t kBytes = 6 * kBlock;
  for (int failing = 0; failing < 6; ++failing) {
    std::atomic<int> armed = -1;
    Store store(options([&](const Request&) -> std::optional<Fault> {
                  if (armed < 0 || armed-- > 0) return {};
                  return Fault{.result = -EIO};
                }),
                {{"layer 7", kBytes}});
    write(store, 0, 1, kBytes);
    store.commit();
    armed = failing;
    const std::string reading = message_of<IoError>([&] { holds(store, 0, 1, kBytes); });
    EXPECT_TRUE(has(reading, "read of layer 7 at offset") && has(reading, folder_.path()) &&
                has(reading, "Input/output"))
        << reading;
    armed = failing;
    const std::string writing = message_of<IoError>([&] { write(store, 0, 2, kBytes); });
    EXPECT_TRUE(has(writing, "write of layer 7 at offset")) << writing;
    EXPECT_TRUE(has(message_of<UsageError>([&] { store.commit(); }), "layer 7"));
    store.abandon();
    EXPECT_TRUE(holds(store, 0, 1, kBytes));
  }
}

// Would catch a full disk after the start that is reported as success (file systems that reserve no space).
TEST_P(StoreTest, ADiskThatIsFullLaterSaysHowMuchIsFree) {
  std::atomic<bool> full = false;
  Store store(options([&](const Request& request) -> std::optional<Fault> {
                if (full && request.write) return Fault{.result = -ENOSPC};
                return {};
              }),
              {{"layer 7", kBlock}});
  write(store, 0, 1, kBlock);
  store.commit();
  full = true;
  const std::string message = message_of<IoError>([&] { write(store, 0, 2, kBlock); });
  EXPECT_TRUE(has(message, "16384 bytes are needed") && has(message, "are free")) << message;
  full = false;
  store.abandon();
  write(store, 0, 3, kBlock);
  store.commit();
  EXPECT_TRUE(holds(store, 0, 3, kBlock));
}

// Would catch short I/O that is mistaken for complete: results of any length, also lengths from which direct I/O cannot
// continue, and requests that the system asks to repeat.
TEST_P(StoreTest, ContinuesAfterShortReadsAndWrites) {
  std::atomic<std::uint32_t> random = 1;
  Store store(options([&](const Request& request) -> std::optional<Fault> {
                random = random * 1664525 + 1013904223;
                const std::uint32_t dice = random >> 16;
                if (dice % 8 == 0) return Fault{.result = dice % 16 == 0 ? -EINTR : -EAGAIN};
                return Fault{.at_most = (1 + dice % 4) * kAlignment};
              }),
              {{"a", 20 * kBlock}});
  for (int version = 0; version < 4; ++version) {
    write(store, 0, version, 20 * kBlock);
    store.commit();
    EXPECT_TRUE(holds(store, 0, version, 20 * kBlock));
  }
}

// Would catch an endless loop, or stale bytes, when the file was truncated.
TEST_P(StoreTest, ATruncatedFileIsNamed) {
  Store store(options(), {{"layer 7", 4 * kBlock}});
  write(store, 0, 1, 4 * kBlock);
  store.commit();
  ASSERT_EQ(ftruncate(store.descriptor(0), kBlock + 1000), 0);
  const std::string message = message_of<IoError>([&] { holds(store, 0, 1, 4 * kBlock); });
  EXPECT_TRUE(has(message, "layer 7") && has(message, "the file is too short")) << message;
}

// Would catch damage that is not detected: the next read must find any flipped bit in the open file, and name its
// block.
TEST_P(StoreTest, AFlippedBitIsFoundAndNamed) {
  constexpr std::int64_t kBytes = 4 * kBlock;
  for (int trial = 0; trial < 40; ++trial) {
    Store store(options(), {{"layer 6", kBytes}, {"layer 7", kBytes}});
    for (int extent = 0; extent < 2; ++extent) write(store, extent, 1, kBytes);
    store.commit();
    const int file = open(fmt::format("/proc/self/fd/{}", store.descriptor(0)).c_str(), O_RDWR);
    ASSERT_GE(file, 0);
    // Extents follow each other, each with two slots. The first slot is active.
    const std::int64_t where = trial * 1637 % kBytes;
    const std::int64_t offset = 2 * kBytes + where;
    unsigned char byte = 0;
    ASSERT_EQ(pread(file, &byte, 1, offset), 1);
    byte ^= static_cast<unsigned char>(1 << trial % 8);
    ASSERT_EQ(pwrite(file, &byte, 1, offset), 1);
    fdatasync(file);
    close(file);
    const std::string message = message_of<IoError>([&] { holds(store, 1, 1, kBytes); });
    EXPECT_TRUE(has(message, fmt::format("layer 7 at offset {} ", 2 * kBytes + where / kBlock * kBlock)) &&
                has(message, "are not what was written"))
        << message;
    EXPECT_TRUE(holds(store, 0, 1, kBytes)) << "its neighbour is unchanged";
  }
}

// Would catch a wait without end on a drive that does not answer, and a destructor that hangs on it.
TEST_P(StoreTest, ADriveThatNeverAnswersIsATimeout) {
  StoreOptions deaf = options([](const Request& request) -> std::optional<Fault> {
    if (request.offset == kBlock) return Fault{.lost = true};
    return {};
  });
  deaf.timeout_ms = 100;
  Store store(deaf, {{"layer 7", 2 * kBlock}});
  fill(store, 0, 0, 1, 2 * kBlock);
  const Store::Ticket ticket = store.write(0, 0);
  EXPECT_TRUE(has(message_of<TimeoutError>([&] { store.wait(ticket); }), "layer 7"));
  EXPECT_FALSE(store.finished(ticket));
  store.abort("another rank died");
  EXPECT_TRUE(has(message_of<Error>([&] { store.wait(ticket); }), "another rank died"));
}

// Would catch an abort that ends only new waits.
TEST_P(StoreTest, AbortEndsAWaitOfAnotherThread) {
  StoreOptions deaf = options([](const Request&) -> std::optional<Fault> { return Fault{.lost = true}; });
  deaf.timeout_ms = 500;
  Store store(deaf, {{"a", kBlock}});
  const Store::Ticket ticket = store.write(0, 0);
  std::thread other([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    store.abort("stop");
  });
  EXPECT_EQ(message_of<Error>([&] { store.wait(ticket); }), "stop");
  other.join();
}

// Would catch a watchdog that fires while a slow drive makes progress.
TEST_P(StoreTest, ASlowDriveIsNoTimeout) {
  StoreOptions slow = options([](const Request&) -> std::optional<Fault> {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    return {};
  });
  slow.timeout_ms = 150;
  slow.queue_depth = 1;
  Store store(slow, {{"a", 16 * kBlock}});
  write(store, 0, 1, 16 * kBlock);
  store.commit();
  EXPECT_TRUE(holds(store, 0, 1, 16 * kBlock));
}

// Would catch folders in memory that are refused, or that are treated as a disk without a note.
TEST_P(StoreTest, WorksInMemoryAndSaysSo) {
  if (!std::filesystem::exists("/dev/shm")) GTEST_SKIP() << "no /dev/shm";
  const TestFolder shared("/dev/shm");
  StoreOptions here = options();
  here.folders = {shared.path()};
  Store store(here, {{"a", 5 * kBlock}});
  write(store, 0, 1, 5 * kBlock);
  store.commit();
  EXPECT_TRUE(holds(store, 0, 1, 5 * kBlock));
  ASSERT_EQ(store.notes().size(), 1U);
  EXPECT_TRUE(has(store.notes()[0], "tmpfs is memory")) << store.notes()[0];
}

// Would catch a job that fails where containers forbid io_uring, or that does not report the use of threads.
TEST(Store, TakesThreadsWhereUringIsForbidden) {
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    const sock_fprog program{.len = 4, .filter = filter};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0)
      _exit(77);
    int code = 1;
    try {
      const TestFolder folder;
      Store store({.folders = {folder.path()}}, {{"a", kBlock}});
      write(store, 0, 1, kBlock);
      store.commit();
      code = holds(store, 0, 1, kBlock) && has(store.how(), "threads of pread and pwrite (") ? 0 : 2;
    } catch (const std::exception&) {
      code = 3;
    }
    _exit(code);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status));
  if (WEXITSTATUS(status) == 77) GTEST_SKIP() << "seccomp is not available";
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

}  // namespace
}  // namespace zeropage::io
