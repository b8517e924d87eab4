#include "zeropage/session/resume_check.h"

#include <gtest/gtest.h>

namespace zeropage::session {
namespace {

const ResumeFacts kProgram{{{"mean", {4}}, {"count", {}}}, "adamw", 2};

// Catches equal sides that are refused.
TEST(ResumeCheck, EqualSidesHaveNoDifference) { EXPECT_TRUE(differences(kProgram, kProgram, {}).empty()); }

// Catches a buffer that only one side has, or has in another shape, without its name; and a strict rule that never
// ends.
TEST(ResumeCheck, NamesBuffersThatDiffer) {
  const ResumeFacts stored{{{"mean", {5}}, {"old", {1}}}, "adamw", 2};
  EXPECT_EQ(differences(kProgram, stored, {}),
            (std::vector<std::string>{"buffer 'count' is in the model, not in the checkpoint",
                                      "buffer 'mean' is [4] in the model, [5] in the checkpoint",
                                      "buffer 'old' is in the checkpoint, not in the model"}));
  EXPECT_EQ(differences(kProgram, stored, {.strict = false}).size(), 1u);
  EXPECT_EQ(differences(kProgram, stored, {.excluded = {"count"}}).size(), 2u);
}

// Catches the state of another optimizer that is loaded, and a load without optimizer that compares it.
TEST(ResumeCheck, NamesAnotherOptimizer) {
  const ResumeFacts stored{kProgram.buffers, "lion", 1};
  const auto found = differences(kProgram, stored, {});
  ASSERT_EQ(found.size(), 2u);
  EXPECT_NE(found[0].find("has 2 parameter groups, the checkpoint 1"), std::string::npos) << found[0];
  EXPECT_NE(found[1].find("the optimizer is adamw, but the checkpoint's optimizer is lion"), std::string::npos);
  EXPECT_TRUE(differences(kProgram, stored, {.with_optimizer = false}).empty());
  EXPECT_TRUE(differences(kProgram, {kProgram.buffers, std::nullopt, 2}, {}).empty());  // an older checkpoint
  EXPECT_EQ(differences({{}, std::nullopt, 0}, {{}, "sgd", 0}, {}).size(), 1u);
}

}  // namespace
}  // namespace zeropage::session
