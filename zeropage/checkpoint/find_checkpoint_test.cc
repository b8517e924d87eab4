// Tests of ranks that see different checkpoints under one name.
#include "zeropage/checkpoint/find_checkpoint.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "zeropage/checkpoint/test_checkpoint.h"
#include "zeropage/comm/testing/test_ranks.h"

namespace zeropage::checkpoint {
namespace {

/// Calls `meanwhile` once, before the first file is opened whose path ends in `name`.
class MeanwhileFiles : public FaultFiles {
 public:
  MeanwhileFiles(std::string name, std::function<void()> meanwhile)
      : FaultFiles([](int) {}), name_(std::move(name)), meanwhile_(std::move(meanwhile)) {}

  std::unique_ptr<ReadableFile> open(const std::string& path) override {
    if (path.ends_with(name_) && meanwhile_) std::exchange(meanwhile_, nullptr)();
    return FaultFiles::open(path);
  }

 private:
  std::string name_;
  std::function<void()> meanwhile_;
};

/// Opens another folder under the name of the first, like a host whose network file system is stale or not mounted.
class ElsewhereFiles : public FaultFiles {
 public:
  ElsewhereFiles(std::string from, std::string to)
      : FaultFiles([](int) {}), from_(std::move(from)), to_(std::move(to)) {}

  std::unique_ptr<ReadableFile> open(const std::string& path) override {
    return FaultFiles::open(path.starts_with(from_) ? to_ + path.substr(from_.size()) : path);
  }

 private:
  std::string from_, to_;
};

struct Loads {
  std::vector<std::string> outcomes;
  std::vector<float> contents;  ///< what each rank has read
};

/// Two ranks load; rank 1 uses a file system of its own.
Loads load(const std::string& folder, FileSystem& files_of_rank_1, bool allow_fallback = false) {
  Loads loads;
  loads.contents.resize(2, -1);
  loads.outcomes = comm::run_threads(2, kTestTimeout, [&](comm::Communicator& communicator) {
    const int rank = communicator.rank();
    auto& files = rank == 0 ? system_files() : files_of_rank_1;
    const auto step = find_checkpoint(files, communicator, folder, std::nullopt, allow_fallback);
    if (step) loads.contents[rank] = weight_of(*step, 0, 1)[0];
  });
  return loads;
}

// Catches ranks that load different checkpoints without an error: the tag is saved again after rank 0 and before rank 1
// opens it.
TEST(FindStep, ATagThatIsSavedAgainMeanwhileFailsOnAllRanks) {
  for (const auto* tag : {"old", "new"}) {
    const TestFolder folder;
    save_alone(system_files(), folder.path(), "old", 1);
    MeanwhileFiles files("manifest.json", [&] { save_alone(system_files(), folder.path(), tag, 2); });
    const auto loads = load(folder.path(), files);
    if (std::string(tag) == "new") {  // another checkpoint: the one that rank 0 has chosen still exists
      EXPECT_EQ(loads.outcomes, (std::vector<std::string>{"", ""}));
      EXPECT_EQ(loads.contents, (std::vector<float>{1, 1}));
      continue;
    }
    for (const auto& outcome : loads.outcomes) {
      EXPECT_TRUE(comm::contains(outcome, "/old was not loaded")) << outcome;
      EXPECT_TRUE(comm::contains(outcome, "rank 1: finds another step there than rank 0")) << outcome;
      EXPECT_TRUE(comm::contains(outcome, "load again")) << outcome;
    }
  }
}

// Catches a load that mixes the manifest of one checkpoint with the shards of another, and an error that calls this
// damage.
TEST(FindStep, AStepThatIsReplacedBeforeItsShardsAreOpenedSaysSo) {
  const TestFolder folder;
  save_alone(system_files(), folder.path(), "a", 1);
  MeanwhileFiles files(".safetensors", [&] { save_alone(system_files(), folder.path(), "a", 2); });
  const auto loads = load(folder.path(), files);
  EXPECT_TRUE(comm::contains(loads.outcomes[1], "was saved again, moved or removed while it was being read"))
      << loads.outcomes[1];
}

// Catches hosts that have different folders with one name.
TEST(FindStep, ARankThatSeesAnotherFolderIsNamed) {
  const TestFolder folder, other;
  save_alone(system_files(), folder.path(), "a", 1);
  save_alone(system_files(), other.path(), "a", 2);
  for (const bool allow_fallback : {false, true}) {
    ElsewhereFiles files(folder.path(), other.path());
    for (const auto& outcome : load(folder.path(), files, allow_fallback).outcomes) {
      EXPECT_TRUE(comm::contains(outcome, "rank 1: finds another step there than rank 0")) << outcome;
    }
  }
  ElsewhereFiles files(folder.path(), other.path() + "/none");
  for (const auto& outcome : load(folder.path(), files).outcomes) {
    EXPECT_TRUE(comm::contains(outcome, "rank 1: open ") && comm::contains(outcome, "No such file")) << outcome;
  }
}

// Catches a fallback that stops at the first damaged checkpoint, or that differs between ranks.
TEST(FindStep, AFallbackIsTheSameStepOnAllRanks) {
  const TestFolder folder;
  for (int i = 1; i <= 3; ++i) save_alone(system_files(), folder.path(), std::to_string(i), static_cast<float>(i));
  std::filesystem::resize_file(folder.path() + "/3/shard-00000-of-00001.safetensors", 5000);
  std::filesystem::resize_file(folder.path() + "/2/manifest.json", 100);
  EXPECT_TRUE(comm::contains(load(folder.path(), system_files()).outcomes[0], "2/manifest.json"));
  const auto loads = load(folder.path(), system_files(), true);
  EXPECT_EQ(loads.outcomes, (std::vector<std::string>{"", ""}));
  EXPECT_EQ(loads.contents, (std::vector<float>{1, 1}));
}

}  // namespace
}  // namespace zeropage::checkpoint
