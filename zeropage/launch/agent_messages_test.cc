#include <gtest/gtest.h>

#include "zeropage/base/error.h"
#include "zeropage/launch/agent.h"

namespace zeropage::launch {
namespace {

// Catches a member that is not sent, and bytes that are not UTF-8, as environment variables may have.
TEST(AgentMessages, ArriveAsTheyWereSent) {
  const RankPlan sent{3, "n1", {"python", "train.py"}, {{"RANK", "3"}, {"ODD", "\xff\x01"}}, {0, 2}};
  const auto ranks = decode_ranks(encode(std::vector<RankPlan>{sent}));
  ASSERT_EQ(ranks.size(), 1u);
  EXPECT_EQ(ranks[0].rank, 3);
  EXPECT_EQ(ranks[0].host, sent.host);
  EXPECT_EQ(ranks[0].argv, sent.argv);
  EXPECT_EQ(ranks[0].env, sent.env);
  EXPECT_EQ(ranks[0].cores, sent.cores);
  const auto question = decode_question(encode(Question{"/home", "a.py", "/bin/python", true, false, true, 29500}));
  EXPECT_EQ(question.script, "a.py");
  EXPECT_TRUE(question.module && !question.no_python && question.all_gpus);
  EXPECT_EQ(question.port, 29500);
  HostReport report{"0.2.0", "2.13.0", "10.0.0.1", "eth0", {}, {"no script"}};
  report.host.cores = {0, 1};
  report.host.omp_threads_set = true;
  const auto got = decode_report(encode(report));
  EXPECT_EQ(got.errors, report.errors);
  EXPECT_EQ(got.host.cores, report.host.cores);
  EXPECT_TRUE(got.host.omp_threads_set);
}

// Catches a message of another version, or a broken one, that crashes the launcher or is taken with empty fields.
TEST(AgentMessages, OtherBytesAreRefused) {
  Question sent;
  sent.script = "a.py";
  const std::string question = encode(sent);
  for (const std::string& bytes : {std::string(), question.substr(0, question.size() / 2), encode(HostReport{}),
                                   question + "x", std::string(100'000, '\x81')}) {
    EXPECT_THROW(decode_question(bytes), IoError);
  }
}

}  // namespace
}  // namespace zeropage::launch
