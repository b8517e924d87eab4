// Tests of two jobs that use one folder.
#include "zeropage/checkpoint/folder_claim.h"

#include <gtest/gtest.h>

#include <fstream>

#include "zeropage/checkpoint/test_checkpoint.h"
#include "zeropage/comm/testing/test_ranks.h"

namespace zeropage::checkpoint {
namespace {

void save_with(const std::shared_ptr<TrainingRun>& run, const std::string& folder, const std::string& tag,
               float content, std::int64_t keep_last = 0) {
  auto communicators = comm::make_thread_communicators(1, kTestTimeout);
  auto request = request_for(folder, tag, 0, 1, content);
  request.run = run;
  request.keep_last = keep_last;
  save(system_files(), *communicators[0], std::move(request));
}

// Catches a second job that saves into the folder of the first, a refusal without the other process and without advice,
// and a folder that stays claimed after its job was killed.
TEST(FolderClaim, ASecondProcessIsRefusedUntilTheFirstHasEnded) {
  const TestFolder folder;
  const std::string ready = folder.path() + ".ready";
  comm::RankProcess first([&] {
    const auto run = std::make_shared<TrainingRun>();
    save_with(run, folder.path(), "a", 1);
    std::ofstream(ready) << run->id();
    std::this_thread::sleep_for(std::chrono::minutes(1));
  });
  std::string id;
  for (int i = 0; i < 1000 && id.size() < 32; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
    std::ifstream(ready) >> id;
  }
  std::filesystem::remove(ready);
  const auto second = std::make_shared<TrainingRun>();
  const auto message = comm::outcome_of([&] { save_with(second, folder.path(), "a", 2); });
  EXPECT_TRUE(comm::contains(message, "belongs to a job that has not ended: process ")) << message;
  EXPECT_TRUE(comm::contains(message, "run " + id) && comm::contains(message, "Save into another folder")) << message;
  EXPECT_EQ(newest_content(folder.path()), 1);
  first.signal(SIGKILL);
  EXPECT_EQ(first.outcome(), "killed");
  save_with(second, folder.path(), "a", 2);
  EXPECT_EQ(newest_content(folder.path()), 2);
}

// Catches two engines of one process that refuse each other, a lock that ends with the first of them, and a lock file
// that remains.
TEST(FolderClaim, RunsOfOneProcessShareAFolder) {
  const TestFolder folder;
  auto one = std::make_shared<TrainingRun>(), two = std::make_shared<TrainingRun>();
  save_with(one, folder.path(), "a", 1);
  save_with(two, folder.path() + "/../" + folder.path().substr(folder.path().rfind('/') + 1), "b", 2);
  const auto refused = [&] {
    return comm::RankProcess([&] { save_with(std::make_shared<TrainingRun>(), folder.path(), "c", 3); }).outcome();
  };
  EXPECT_TRUE(comm::contains(refused(), "belongs to a job"));
  one.reset();
  EXPECT_TRUE(comm::contains(refused(), "belongs to a job"));
  two.reset();
  EXPECT_EQ(refused(), "");
  EXPECT_EQ(system_files().list(folder.path()), (std::vector<std::string>{"a", "b", "c", "latest"}));
}

// Catches a lock file that stays open for every folder of a trainer that gives each step its own.
TEST(FolderClaim, ManyFoldersHoldFewLocks) {
  const TestFolder folder;
  const auto run = std::make_shared<TrainingRun>();
  for (int i = 0; i < 20; ++i) save_with(run, folder.path() + "/" + std::to_string(i), "a", 1);
  int held = 0;
  for (int i = 0; i < 20; ++i) held += system_files().exists(folder.path() + "/" + std::to_string(i) + "/.lock");
  EXPECT_EQ(held, 16);
  EXPECT_TRUE(system_files().exists(folder.path() + "/19/.lock"));
}

// Catches a job that removes the checkpoints of another, and a job that continues a run and never removes its old ones.
TEST(FolderClaim, OldStepsAreRemovedByTheirOwnRunAlone) {
  const TestFolder folder;
  const auto one = std::make_shared<TrainingRun>(), two = std::make_shared<TrainingRun>();
  for (const auto* tag : {"a1", "a2", "a3"}) save_with(one, folder.path(), tag, 1, 2);
  for (const auto* tag : {"b1", "b2"}) save_with(two, folder.path(), tag, 2, 1);
  EXPECT_EQ(system_files().list(folder.path()), (std::vector<std::string>{".lock", "a2", "a3", "b2", "latest"}));
  const auto again = std::make_shared<TrainingRun>();
  again->continue_as(Checkpoint(system_files(), folder.path() + "/a3").manifest().run);
  save_with(again, folder.path(), "a4", 3, 2);
  EXPECT_EQ(system_files().list(folder.path()), (std::vector<std::string>{".lock", "a3", "a4", "b2", "latest"}));
}

}  // namespace
}  // namespace zeropage::checkpoint
