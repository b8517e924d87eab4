// Tests with power cuts at every point of a save, and with damaged checkpoints.
#include <gtest/gtest.h>

#include <iostream>
#include <random>
#include <set>

#include "zeropage/checkpoint/memory_files.h"
#include "zeropage/checkpoint/test_checkpoint.h"

namespace zeropage::checkpoint {
namespace {

constexpr std::int64_t kRows = 500;

void save_in(FileSystem& files, const std::string& tag, float content, std::int64_t keep_last = 0, int world = 1) {
  // One rank simulates hundreds of power cuts within one operation, and the other rank waits for it.
  auto communicators = comm::make_thread_communicators(world, std::chrono::minutes(2));
  std::vector<std::thread> ranks;
  for (int rank = 0; rank < world; ++rank) {
    ranks.emplace_back([&, rank] {
      auto request = request_for("/c", tag, rank, world, content, kRows);
      request.keep_last = keep_last;
      save(files, *communicators[rank], std::move(request));
    });
  }
  for (auto& rank : ranks) rank.join();
}

float newest_in(FileSystem& files) { return newest_content("/c", files); }

struct Scenario {
  std::string tag;
  std::int64_t keep_last;
  int world;
};

/// Counts and checks the possible states after a power cut.
class Cuts {
 public:
  void try_all(const MemoryFiles& files) {
    if (!first_problem.empty()) return;
    const std::size_t pending = files.pending_names();
    const bool all = pending <= 6;
    const int states_of_names = all ? 1 << pending : 64;
    for (int state = 0; state < states_of_names; ++state) {
      std::vector<bool> kept(pending);
      for (std::size_t i = 0; i < pending; ++i) kept[i] = all ? (state >> i & 1) != 0 : random_() % 2 == 0;
      for (int variant = 0; variant < 20; ++variant) {
        ++states;
        MemoryFiles left = files.after_power_cut(kept, random_);
        if (!seen_.emplace(acknowledged, left.tree()).second)
          continue;  // most cuts leave the same state as another one
        const std::string wrong = problem(std::move(left));
        if (!wrong.empty() && first_problem.empty()) first_problem = wrong;
      }
    }
  }

  std::size_t different_states() const { return seen_.size(); }

  int states = 0;             ///< including equal ones
  bool acknowledged = false;  ///< the save has returned: only the new checkpoint is right
  std::string first_problem;

 private:
  std::string problem(MemoryFiles left) {
    try {
      const float found = newest_in(left);
      if (found != 2 && (found != 1 || acknowledged)) return "found " + std::to_string(found);
      save_in(left, "after", 9);
      if (newest_in(left) != 9) return "the next save was not found";
      for (const auto& name : left.list("/c")) {
        if (name.front() == '.') return "a leftover stays: " + name;
      }
      return "";
    } catch (const Error& error) {
      return error.what();
    }
  }

  std::mt19937 random_{1};
  std::set<std::pair<bool, std::string>> seen_;
};

/// Replaces an old checkpoint, with a power cut at every point.
Cuts cuts_of(MemoryFiles& files, std::function<void(const MemoryFiles&)>& before, const Scenario& scenario) {
  Cuts cuts;
  files.make_directories("/c");
  files.sync_directory("");
  save_in(files, "old", 1);
  before = [&](const MemoryFiles& now) { cuts.try_all(now); };
  save_in(files, scenario.tag, 2, scenario.keep_last, scenario.world);
  before = nullptr;
  cuts.acknowledged = true;
  cuts.try_all(files);
  return cuts;
}

// Catches a missing sync (of each file, of the checkpoint's directory, of the folder), an order that removes the old
// checkpoint before the new one is durable, and leftovers that stop the next save.
TEST(PowerCut, LeavesTheOldOrTheNewStepAndAnAcknowledgedOneAlways) {
  int states = 0;
  std::size_t different = 0;
  for (const auto& scenario : {Scenario{"new", 0, 1}, {"old", 0, 1}, {"new", 1, 1}, {"new", 1, 2}}) {
    std::function<void(const MemoryFiles&)> before;
    MemoryFiles files([&](const MemoryFiles& now) {
      if (before) before(now);
    });
    const auto cuts = cuts_of(files, before, scenario);
    ASSERT_EQ(cuts.first_problem, "") << scenario.tag << ", keep_last " << scenario.keep_last;
    states += cuts.states;
    different += cuts.different_states();
  }
  std::cout << states << " power cuts, which left " << different << " different states\n";
  EXPECT_GE(states, 10'000);
  EXPECT_GE(different, 200u);
}

/// A file system on which some syncs do nothing.
class LyingFiles : public MemoryFiles {
 public:
  LyingFiles(std::function<void(const MemoryFiles&)> before, std::string lie)
      : MemoryFiles(before), lie_(std::move(lie)) {}
  void sync_directory(const std::string& path) override {
    const bool inside = path.find(".tmp") != std::string::npos;
    if (lie_ != (inside ? "step" : "folder")) MemoryFiles::sync_directory(path);
  }

 protected:
  bool syncs_files() const override { return lie_ != "file"; }

 private:
  std::string lie_;
};

// Catches a sweep that cannot find a missing sync.
TEST(PowerCut, TheSweepFindsEachSyncThatIsMissing) {
  for (const std::string lie : {"file", "step", "folder"}) {
    std::function<void(const MemoryFiles&)> before;
    LyingFiles files(
        [&](const MemoryFiles& now) {
          if (before) before(now);
        },
        lie);
    EXPECT_NE(cuts_of(files, before, {"new", 1, 1}).first_problem, "") << lie;
  }
}

bool loads(MemoryFiles& files) {
  try {
    return newest_in(files) == 1;
  } catch (const Error&) {
    return false;
  }
}

// Catches a byte that no digest covers, in a checkpoint with several shards and many chunks.
TEST(Damage, TenThousandRandomBitFlipsAreRefused) {
  MemoryFiles files;
  files.make_directories("/c");
  auto communicators = comm::make_thread_communicators(1, std::chrono::seconds(5));
  save(files, *communicators[0], request_for("/c", "a", 0, 1, 1, /*rows=*/10'000));
  ASSERT_TRUE(loads(files));
  std::mt19937 random(1);
  const std::vector<std::string> paths = {"/c/a/manifest.json", "/c/a/shard-00000-of-00001.safetensors"};
  for (int flip = 0; flip < 10'000; ++flip) {
    std::string& content = files.content(paths[flip % 2]);
    char& byte = content[random() % content.size()];
    const char before = byte;
    byte = static_cast<char>(byte ^ (1 << random() % 8));
    ASSERT_FALSE(loads(files)) << paths[flip % 2] << ", byte " << &byte - content.data();
    byte = before;
  }
  ASSERT_TRUE(loads(files));
}

// Catches files of another checkpoint or rank that are accepted.
TEST(Damage, SwappedMissingAndForeignFilesAreRefused) {
  MemoryFiles files;
  files.make_directories("/c");
  save_in(files, "a", 1, 0, 2);
  save_in(files, "b", 2, 0, 2);
  const auto shard = [](const std::string& tag, int rank) { return "/c/" + tag + "/" + shard_file_name(rank, 2); };
  const auto refused = [&](const std::function<void(MemoryFiles&)>& damage) {
    MemoryFiles damaged(files);
    damage(damaged);
    try {
      Checkpoint(damaged, "/c/b").verify();
      return false;
    } catch (const Error&) {
      return true;
    }
  };
  EXPECT_TRUE(refused([&](MemoryFiles& f) { f.exchange(shard("b", 0), shard("b", 1)); }));
  EXPECT_TRUE(refused([&](MemoryFiles& f) { f.exchange(shard("b", 0), shard("a", 0)); }));
  EXPECT_TRUE(refused([&](MemoryFiles& f) { f.exchange("/c/b/manifest.json", "/c/a/manifest.json"); }));
  EXPECT_TRUE(refused([&](MemoryFiles& f) { f.remove_all(shard("b", 1)); }));
  EXPECT_TRUE(refused([&](MemoryFiles& f) { f.content(shard("b", 1)).resize(100); }));
  EXPECT_FALSE(refused([](MemoryFiles& f) {}));
}

}  // namespace
}  // namespace zeropage::checkpoint
