// Tests of the choice of the newest checkpoint when some are damaged, missing, or have strange names.
#include "zeropage/checkpoint/steps.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "zeropage/base/digest.h"
#include "zeropage/checkpoint/test_checkpoint.h"
#include "zeropage/comm/testing/test_ranks.h"

namespace zeropage::checkpoint {
namespace {

namespace fs = std::filesystem;

/// A folder with the checkpoints "a", "b" and "c", whose content is 1, 2 and 3.
class Steps : public testing::Test {
 protected:
  void SetUp() override {
    float content = 1;
    for (const auto* tag : {"a", "b", "c"}) save_alone(system_files(), folder_.path(), tag, content++);
  }
  fs::path path(const std::string& name) const { return fs::path(folder_.path()) / name; }
  void set_latest(const std::string& tag) const { std::ofstream(path("latest")) << tag << "\n"; }
  std::string refusal() const {
    return comm::outcome_of([&] { newest_content(folder_.path()); });
  }
  void expect_refused(const std::string& why, const std::string& sound) const {
    const std::string message = refusal();
    EXPECT_TRUE(comm::contains(message, why)) << message;
    EXPECT_TRUE(comm::contains(message, "the newest intact one is '" + sound + "': load it by its tag")) << message;
    EXPECT_TRUE(comm::contains(message, "zeropage.allow_fallback")) << message;
  }

  TestFolder folder_;
};

// Catches an older checkpoint that is loaded without a message when the newest is missing or damaged: its folder, its
// manifest, or bytes of the manifest.
TEST_F(Steps, ANewestThatCannotBeUsedIsAnErrorWhateverLatestSays) {
  for (const auto* latest : {"c", "b"}) {
    set_latest(latest);
    fs::rename(path("c/manifest.json"), path("aside"));
    expect_refused("c/manifest.json", "b");
    fs::rename(path("aside"), path("c/manifest.json"));
    for (const std::uintmax_t bytes : {0, 10, 150, 400}) {  // before and after the sequence
      fs::copy_file(path("c/manifest.json"), path("aside"));
      fs::resize_file(path("c/manifest.json"), bytes);
      expect_refused("c/manifest.json", "b");
      fs::rename(path("aside"), path("c/manifest.json"));
    }
  }
  EXPECT_EQ(newest_content(folder_.path()), 3);
  set_latest("c");
  fs::rename(path("c"), path(".c"));
  expect_refused("/latest names 'c', which is not there", "b");
  fs::remove(path("latest"));
  EXPECT_EQ(newest_content(folder_.path()), 2);
}

// Catches a damaged old checkpoint that makes the folder unusable, or that makes a save use a sequence number again.
TEST_F(Steps, ADamagedStepThatSaysItIsOlderIsNoHindrance) {
  std::ofstream(path("a/manifest.json"), std::ios::app) << "x";
  EXPECT_EQ(newest_content(folder_.path()), 3);
  std::ofstream(path("c/manifest.json"), std::ios::app) << "x";
  EXPECT_EQ(next_sequence(system_files(), folder_.path()), 3);
  expect_refused("c/manifest.json", "b");
  save_alone(system_files(), folder_.path(), "d", 4);
  EXPECT_EQ(newest_content(folder_.path()), 4);
}

// Catches a kill between the two renames of a commit that is reported as a loss: the new checkpoint exists, and
// `latest` still names the previous one, or does not exist.
TEST_F(Steps, ACommitThatWasKilledBeforeLatestLoads) {
  set_latest("b");
  EXPECT_EQ(newest_content(folder_.path()), 3);
  fs::remove(path("latest"));
  EXPECT_EQ(newest_content(folder_.path()), 3);
}

void rewrite(const fs::path& manifest, const std::string& from, const std::string& to) {
  const std::string text = read_text(system_files(), manifest, kMaxManifestBytes);
  std::string body = text.substr(text.find('\n') + 1);
  ASSERT_NE(body.find(from), std::string::npos) << body;
  body.replace(body.find(from), from.size(), to);
  std::ofstream(manifest) << "{\"digest\": \"" << digest128(body) << "\",\n" << body;
}

// Catches a sequence that no later save can exceed.
TEST_F(Steps, ASequenceWithoutASuccessorIsRefusedAndSavesGoOn) {
  rewrite(path("b/manifest.json"), "\"sequence\":1", "\"sequence\":9223372036854775807");
  EXPECT_TRUE(comm::contains(refusal(), "'sequence' is 9223372036854775807")) << refusal();
  save_alone(system_files(), folder_.path(), "d", 4);
  fs::remove_all(path("b"));
  EXPECT_EQ(newest_content(folder_.path()), 4);
}

// Catches names with control sequences for terminals, or that are no text, in lists and messages; and one such folder
// that makes all others unusable.
TEST_F(Steps, FolderNamesThatAreNoTagsAreShownEscaped) {
  for (const std::string& name : {std::string("a\x1b[31m"), std::string("a\xff")}) {
    fs::rename(path("a"), path(name));
    EXPECT_EQ(newest_content(folder_.path()), 3);
    const auto steps = list_steps(system_files(), folder_.path());
    ASSERT_EQ(steps.size(), 3u);
    EXPECT_TRUE(steps[2].tag == "a\\x1b[31m" || steps[2].tag == "a\\xff") << steps[2].tag;
    EXPECT_TRUE(comm::contains(steps[2].problem, "rename it") && !comm::contains(steps[2].problem, name))
        << steps[2].problem;
    fs::rename(path(name), path("a"));
  }
  fs::rename(path("c"), path("c\x1b[31m"));
  fs::remove(path("latest"));
  expect_refused("c\\x1b[31m", "b");
}

}  // namespace
}  // namespace zeropage::checkpoint
