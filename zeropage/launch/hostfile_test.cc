#include "zeropage/launch/hostfile.h"

#include <gtest/gtest.h>

#include "zeropage/base/error.h"

namespace zeropage::launch {
namespace {

using Hosts = std::vector<HostSlots>;

const Hosts kPool = {{"a", {0, 1, 2, 3}}, {"b", {0, 1, 2, 3}}, {"c", {0, 1}}};

template <typename Work>
std::string error_of(Work work) {
  try {
    work();
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "no error";
}

TEST(Hostfile, GrammarOfLines) {
  const Hosts hosts =
      parse_hostfile("# hosts\n\nworker-0 slots=2\r\n  w1.example\tslots=1 # last\n[fe80::1]\n", "hosts");
  EXPECT_EQ(hosts, Hosts({{"worker-0", {0, 1}}, {"w1.example", {0}}, {"[fe80::1]", {0}}}));
  EXPECT_EQ(bare_host("[fe80::1]"), "fe80::1");
}

// Catches host names that contain options or shell commands: accepted names are passed to ssh.
TEST(Hostfile, HostileLinesAreRefusedWithTheirNumber) {
  for (const char* line :
       {"-oProxyCommand=evil slots=1", "a;b slots=1", "$(x) slots=1", "a slots=0", "a slots=1025", "a slots=1 more",
        "a slots=-1", "a slots=1e3", "a slot=1", "a:b", "[::zz]", "h-", "\x01", "ä"}) {
    const std::string what = error_of([&] { parse_hostfile(std::string("good slots=1\n") + line + "\n", "hosts"); });
    EXPECT_EQ(what.rfind("hosts:2: ", 0), 0u) << line << " gave " << what;
  }
  EXPECT_NE(error_of([] { parse_hostfile("a\nb\na slots=2\n", "h"); }).find("h:3: host a is repeated"),
            std::string::npos);
  EXPECT_NE(error_of([] { parse_hostfile("# none\n", "h"); }).find("names no host"), std::string::npos);
  EXPECT_FALSE(is_host_name(std::string(254, 'a')));
}

TEST(Select, IncludeAndExclude) {
  EXPECT_EQ(select_slots(kPool, {"c@a:2,0", "", {}, {}}), Hosts({{"a", {0, 2}}, {"c", {0, 1}}}))
      << "in the pool's order";
  EXPECT_EQ(select_slots(kPool, {"", "b@a:0,1", {}, {}}), Hosts({{"a", {2, 3}}, {"c", {0, 1}}}));
  EXPECT_EQ(select_slots(kPool, {"", "c:0,1", {}, {}}).size(), 2u) << "a host without slots is no host";
  EXPECT_EQ(select_slots(kPool, {"", "", 2, 1}), Hosts({{"a", {0}}, {"b", {0}}}));
  EXPECT_EQ(select_slots(kPool, {}), kPool);
}

TEST(Select, ErrorsNameWhatIsWrong) {
  const auto select_error = [](const Selection& selection) {
    return error_of([&] { select_slots(kPool, selection); });
  };
  EXPECT_NE(select_error({"d", "", {}, {}}).find("no host d; the hosts are a, b, c"), std::string::npos);
  EXPECT_NE(select_error({"c:2", "", {}, {}}).find("host c has no slot 2; it has 0,1"), std::string::npos);
  EXPECT_NE(select_error({"a", "b", {}, {}}).find("exclude each other"), std::string::npos);
  EXPECT_NE(select_error({"a", "", 1, {}}).find("cannot be combined"), std::string::npos);
  EXPECT_NE(select_error({"", "a", {}, 1}).find("cannot be combined"), std::string::npos);
  EXPECT_NE(select_error({"", "a@b@c", {}, {}}).find("leaves no host"), std::string::npos);
  EXPECT_NE(select_error({"", "", 4, {}}).find("there are 3 hosts"), std::string::npos);
  EXPECT_NE(select_error({"", "", {}, 3}).find("host c has 2 slots"), std::string::npos);
  EXPECT_NE(select_error({"a:0,0", "", {}, {}}).find("slot 0 is repeated"), std::string::npos);
  EXPECT_NE(select_error({"a@a", "", {}, {}}).find("host a is repeated"), std::string::npos);
  EXPECT_NE(select_error({"a:", "", {}, {}}).find("no slot number"), std::string::npos);
}

}  // namespace
}  // namespace zeropage::launch
