#include "zeropage/checkpoint/save.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <algorithm>
#include <csignal>

#include <fstream>
#include <map>

#include "zeropage/checkpoint/steps.h"
#include "zeropage/checkpoint/test_checkpoint.h"
#include "zeropage/comm/testing/test_ranks.h"

namespace zeropage::checkpoint {
namespace {

/// Saves with `world` ranks as threads. Returns the error of each.
std::vector<std::string> save_by_threads(int world, const std::string& folder, const std::string& tag, float content,
                                         const std::map<int, FileSystem*>& files = {}) {
  return comm::run_threads(world, kTestTimeout, [&](comm::Communicator& communicator) {
    const int rank = communicator.rank();
    const auto own = files.find(rank);
    save(own == files.end() ? system_files() : *own->second, communicator,
         request_for(folder, tag, rank, world, content));
  });
}

// Catches extents that are cut, shifted or assigned to another rank: every world size writes, any range reads.
TEST(Save, AnyRangeReadsBackFromAnyWorldSize) {
  for (int world = 1; world <= 8; ++world) {
    const TestFolder folder;
    for (const auto& outcome : save_by_threads(world, folder.path(), "a", 100)) ASSERT_EQ(outcome, "");
    Checkpoint step(system_files(), folder.path() + "/a");
    for (int readers = 1; readers <= 8; ++readers) {
      for (int r = 0; r < readers; ++r) {
        const std::int64_t begin = 2100 * r / readers, end = 2100 * (r + 1) / readers;
        const auto values = weight_of(step, begin, end);
        for (std::int64_t i = begin; i < end; ++i) ASSERT_EQ(values[i - begin], 100.0f + static_cast<float>(i));
      }
    }
    EXPECT_EQ(step.find("random/" + std::to_string(world - 1))->info.shape[0], world);
    step.verify();
  }
}

// Catches a newest checkpoint that is found by name, by time or by `latest` instead of by the order of saves.
TEST(Save, TheNewestIsTheLastSaved) {
  const TestFolder folder;
  EXPECT_EQ(newest_content(folder.path()), -1);
  save_alone(system_files(), folder.path(), "b", 10);
  save_alone(system_files(), folder.path(), "a", 5);
  EXPECT_EQ(newest_content(folder.path()), 5);
  std::ofstream(folder.path() + "/latest") << "b\n";  // stale
  EXPECT_EQ(newest_content(folder.path()), 5);
  save_alone(system_files(), folder.path(), "b", 30);  // the same tag again
  EXPECT_EQ(newest_content(folder.path()), 30);
  EXPECT_EQ(list_steps(system_files(), folder.path()).size(), 2u);
}

// Catches a damaged checkpoint that is skipped without a message.
TEST(Save, ADamagedNewestIsRefusedWithTheNameOfTheOneBefore) {
  const TestFolder folder;
  save_alone(system_files(), folder.path(), "a", 1);
  save_alone(system_files(), folder.path(), "b", 2);
  std::ofstream(folder.path() + "/b/manifest.json", std::ios::app) << "x";
  const auto message = comm::outcome_of([&] { newest_content(folder.path()); });
  EXPECT_TRUE(comm::contains(message, "b/manifest.json") && comm::contains(message, "'a'")) << message;
}

/// A file system without locks, like some network file systems.
class LocklessFiles : public FaultFiles {
 public:
  LocklessFiles() : FaultFiles([](int) {}) {}
  std::unique_ptr<DirectoryLock> try_lock(const std::string& path) override { return nullptr; }
};

// Catches a save that waits forever for a lock, and one that removes files that another job may be writing.
TEST(Save, WorksWithoutLocksAndThenRemovesNoLeftovers) {
  const TestFolder folder;
  LocklessFiles files;
  std::filesystem::create_directory(folder.path() + "/.other.tmp");
  save_alone(files, folder.path(), "a", 3);
  EXPECT_EQ(newest_content(folder.path()), 3);
  EXPECT_EQ(system_files().list(folder.path()), (std::vector<std::string>{".other.tmp", "a", "latest"}));
}

// Catches a save that removes files of others: folders whose names look like those of dead saves, folders with the
// right name but with files of others, and a folder that has the tag's name.
TEST(Save, RemovesOnlyWhatDeadSavesHaveLeft) {
  const TestFolder folder;
  const std::string dead = ".b.0123456789abcdef.tmp", foreign = ".c.0123456789abcdef.tmp";
  for (const auto& name :
       {dead, foreign, std::string(".other.tmp"), std::string(".b.0123456789ABCDEF.tmp"), std::string("b")})
    std::filesystem::create_directory(folder.path() + "/" + name);
  std::ofstream(folder.path() + "/" + dead + "/shard-00000-of-00001.safetensors") << "half";
  std::ofstream(folder.path() + "/" + foreign + "/notes.txt") << "mine";
  std::ofstream(folder.path() + "/b/mp_rank_00_model_states.pt") << "another library's checkpoint";
  save_alone(system_files(), folder.path(), "a", 3);
  const auto message = comm::outcome_of([&] { save_alone(system_files(), folder.path(), "b", 4); });
  EXPECT_TRUE(comm::contains(message, "/b is there already and is no checkpoint of zeropage")) << message;
  EXPECT_EQ(system_files().list(folder.path()),
            (std::vector<std::string>{".b.0123456789ABCDEF.tmp", foreign, ".other.tmp", "a", "b", "latest"}));
  EXPECT_EQ(system_files().list(folder.path() + "/b").size(), 1u);
  EXPECT_EQ(newest_content(folder.path()), 3);
}

// Catches a wrong number of removed checkpoints, and a removed one that was saved with latest = false.
TEST(Save, KeepsTheLastOnesAndWhatWasSavedAside) {
  const TestFolder folder;
  auto communicators = comm::make_thread_communicators(1, kTestTimeout);
  const auto save_one = [&](const std::string& tag, bool latest) {
    auto request = request_for(folder.path(), tag, 0, 1, 1);
    request.manifest.latest = latest;
    request.keep_last = 2;
    save(system_files(), *communicators[0], std::move(request));
  };
  save_one("aside", false);
  for (const auto* tag : {"z", "y", "x"}) save_one(tag, true);
  std::filesystem::resize_file(folder.path() + "/y/manifest.json", 10);  // a damaged one is kept for inspection
  save_one("w", true);
  EXPECT_EQ(system_files().list(folder.path()), (std::vector<std::string>{"aside", "latest", "w", "x", "y"}));
}

/// Runs `work` in a child process that limits files to `bytes`. Returns its error.
std::string with_small_files(rlim_t bytes, const std::function<void()>& work) {
  const TestFolder folder;
  const std::string report = folder.path() + "/report";
  if (const pid_t child = fork(); child == 0) {
    signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{bytes, RLIM_INFINITY};
    setrlimit(RLIMIT_FSIZE, &limit);
    const std::string outcome = comm::outcome_of(work);
    const rlimit none{RLIM_INFINITY, RLIM_INFINITY};
    setrlimit(RLIMIT_FSIZE, &none);
    std::ofstream(report) << outcome;
    _exit(0);
  } else {
    int status = 0;
    waitpid(child, &status, 0);
  }
  std::ifstream in(report);
  return std::string((std::istreambuf_iterator<char>(in)), {});
}

// Catches a full disk that is found late, an error without the path or the needed bytes, and damage to earlier
// checkpoints.
TEST(SaveFaults, NoRoomIsSaidWithPathAndBytes) {
  const TestFolder folder;
  save_alone(system_files(), folder.path(), "old", 1);
  const auto outcome = with_small_files(6000, [&] { save_alone(system_files(), folder.path(), "new", 2); });
  EXPECT_TRUE(comm::contains(outcome, "shard-00000-of-00001.safetensors: File too large; 8")) << outcome;
  EXPECT_TRUE(comm::contains(outcome, "bytes are needed from offset 0 on") && comm::contains(outcome, "are free"))
      << outcome;
  EXPECT_EQ(newest_content(folder.path()), 1);
  save_alone(system_files(), folder.path(), "new", 2);
  EXPECT_EQ(newest_content(folder.path()), 2);
}

// Catches a partial write that is mistaken for a complete one.
TEST(SaveFaults, AShortWriteIsCompletedOrReported) {
  const TestFolder folder;
  const std::vector<std::byte> data(10'000);
  const auto write = [&] {
    const auto file = system_files().create(folder.path() + "/file", 0);  // no space is reserved
    file->append(data.data(), static_cast<std::int64_t>(data.size()));
    file->close();
  };
  const auto outcome = with_small_files(6000, write);
  EXPECT_TRUE(comm::contains(outcome, "/file: File too large; 4000 bytes are needed from offset 6000 on")) << outcome;
}

std::vector<std::byte> numbered_bytes(std::int64_t bytes) {
  std::vector<std::byte> data(static_cast<std::size_t>(bytes));
  for (std::int64_t i = 0; i < bytes; ++i) data[i] = static_cast<std::byte>(i * 7 + i / 4099);
  return data;
}

/// Appends all bytes in pieces.
void append_in_pieces(WritableFile& file, const std::vector<std::byte>& data, std::int64_t piece_bytes) {
  const auto bytes = static_cast<std::int64_t>(data.size());
  for (std::int64_t at = 0; at < bytes; at += piece_bytes) {
    file.append(data.data() + at, std::min(piece_bytes, bytes - at));
  }
}

// Catches bytes at wrong offsets in files that are larger than the buffers, for sizes that are not multiples of a
// block.
TEST(NewFile, LargeFilesHoldWhatWasAppended) {
  const TestFolder folder;
  constexpr std::int64_t kMiB = 1 << 20;
  for (const std::int64_t bytes : {16 * kMiB, 20 * kMiB + 1, 37 * kMiB - 5}) {
    const auto data = numbered_bytes(bytes);
    for (const std::int64_t piece : {kMiB, std::int64_t{1'300'001}, 9 * kMiB}) {
      const std::string path = folder.path() + "/" + std::to_string(bytes) + "-" + std::to_string(piece);
      const auto file = system_files().create(path, bytes);
      append_in_pieces(*file, data, piece);
      file->sync();
      file->close();
      const auto stored = system_files().open(path);
      ASSERT_EQ(stored->bytes(), bytes);
      std::vector<std::byte> found(data.size());
      stored->read(0, found.data(), bytes);
      ASSERT_TRUE(found == data) << path;
    }
  }
}

// Catches a lost failure of a write that ran when others were started, and a partial write that is mistaken for a
// complete one.
TEST(NewFile, AFailureUnderWayIsReportedWithItsPlace) {
  const TestFolder folder;
  const auto data = numbered_bytes(40 << 20);
  const auto outcome = with_small_files(1, [&] {
    const rlimit none{RLIM_INFINITY, RLIM_INFINITY}, some{(21 << 20) + 4096, RLIM_INFINITY};
    setrlimit(RLIMIT_FSIZE, &none);
    const auto file = system_files().create(folder.path() + "/file", 40 << 20);
    setrlimit(RLIMIT_FSIZE, &some);
    append_in_pieces(*file, data, 1 << 20);
    file->sync();
  });
  // The write that reached the limit, or one that was started after it.
  EXPECT_TRUE(comm::contains(outcome, "/file: File too large; 1")) << outcome;
  EXPECT_TRUE(comm::contains(outcome, "bytes are needed from offset 2")) << outcome;
}

// Catches tags that are paths out of the folder, or that are names of our own files.
TEST(Save, TagsThatAreNoNamesAreRefused) {
  for (const auto* tag :
       {"", ".", "..", "../x", "a/b", "latest", ".hidden", "a\nb", "a\x1b[31mb", "a\xff", "a\xc2\x9b"}) {
    EXPECT_THROW(check_tag(tag), UsageError) << tag;
  }
}

// Catches ranks that disagree whether a checkpoint was saved, a lost error, and a failure that damages earlier
// checkpoints: each operation of a save fails once, on each of two ranks.
TEST(SaveFaults, AFailureAtAnyOperationIsEverybodysAndHarmsNothing) {
  int points = 0;
  for (int rank = 0; rank < 2; ++rank) {
    for (int at = 0;; ++at, ++points) {
      const TestFolder folder;
      save_by_threads(2, folder.path(), "old", 1);
      bool failed = false;
      FaultFiles files([&](int op) {
        if (op != at) return;
        failed = true;
        throw IoError("write x: No space left on device");
      });
      const auto outcomes = save_by_threads(2, folder.path(), "new", 2, {{rank, &files}});
      if (!failed) break;
      // A save may fail to remove a leftover directory, but nothing else, without failing itself.
      for (const auto& outcome : outcomes) {
        ASSERT_TRUE(comm::contains(outcome, "No space left") && comm::contains(outcome, "rank"))
            << at << ": " << outcome;
      }
      const float found = newest_content(folder.path());
      ASSERT_TRUE(found == 1 || found == 2) << "rank " << rank << ", operation " << at;
      for (const auto& outcome : save_by_threads(2, folder.path(), "next", 3)) ASSERT_EQ(outcome, "");
      ASSERT_EQ(newest_content(folder.path()), 3);
    }
  }
  RecordProperty("points", points);
  EXPECT_GT(points, 15);
}

// Catches a dead rank after which the others wait forever or have an incomplete checkpoint.
TEST(SaveFaults, ADeadRankFailsTheOthersAndTheOldStepLoads) {
  const TestFolder folder;
  save_by_threads(3, folder.path(), "old", 1);
  const auto outcomes = comm::run_processes(3, kTestTimeout, [&](comm::Communicator& communicator) {
    const int rank = communicator.rank();
    FaultFiles files([&](int op) {
      if (rank == 2 && op == 2) kill(getpid(), SIGKILL);
    });
    save(files, communicator, request_for(folder.path(), "new", rank, 3, 2));
  });
  EXPECT_EQ(outcomes[2], "killed");
  for (int rank = 0; rank < 2; ++rank) EXPECT_TRUE(comm::contains(outcomes[rank], "PeerError")) << outcomes[rank];
  EXPECT_EQ(newest_content(folder.path()), 1);
}

}  // namespace
}  // namespace zeropage::checkpoint
