#include "zeropage/launch/host.h"
#include "zeropage/base/descriptor.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <filesystem>
#include <fstream>

namespace zeropage::launch {
namespace {

using Names = std::vector<std::string>;

TEST(Host, VisibleGpus) {
  const std::filesystem::path folder = std::filesystem::path(::testing::TempDir()) / "host_test_dev";
  std::filesystem::create_directories(folder);
  for (const char* name : {"nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "nvidia", "null"})
    std::ofstream(folder / name);
  EXPECT_EQ(visible_gpus(folder, nullptr), Names({"0", "1"})) << "control devices are no GPUs";
  EXPECT_EQ(visible_gpus(folder, "3, GPU-8932f937"), Names({"3", "GPU-8932f937"}));
  EXPECT_EQ(visible_gpus(folder, ""), Names()) << "set and empty hides all";
  EXPECT_EQ(visible_gpus(folder, "-1"), Names());
  EXPECT_EQ(visible_gpus(folder, "0,-1,1"), Names({"0"}))
      << "as in the driver: entries after an invalid one are hidden";
  EXPECT_EQ(visible_gpus(folder / "missing", nullptr), Names());
  std::filesystem::remove_all(folder);
}

TEST(Host, Programs) {
  EXPECT_EQ(find_program("/bin/sh"), "/bin/sh");
  EXPECT_NE(find_program("sh"), "");
  EXPECT_EQ(find_program("/etc/passwd"), "") << "not executable";
  EXPECT_EQ(find_program("no-such-program-here"), "");
}

// Catches two launchers that use the same port: both find 29500 free, because the ranks listen only seconds later.
TEST(Host, APortIsClaimedByOneLauncher) {
  const Port first = claim_port(0);
  ASSERT_GT(first.number, 0);
  const Port second = claim_port(first.number);
  EXPECT_NE(second.number, first.number);
}

TEST(Host, AClaimEndsWithItsOwner) {
  int number = 0;
  { number = claim_port(0).number; }
  EXPECT_EQ(claim_port(number).number, number);
}

TEST(Host, APortThatSomebodyListensAtIsTaken) {
  const Descriptor listener(::socket(AF_INET, SOCK_STREAM, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t bytes = sizeof(address);
  ASSERT_EQ(::bind(listener.get(), reinterpret_cast<sockaddr*>(&address), bytes), 0);
  ASSERT_EQ(::listen(listener.get(), 1), 0);
  ASSERT_EQ(::getsockname(listener.get(), reinterpret_cast<sockaddr*>(&address), &bytes), 0);
  EXPECT_NE(claim_port(ntohs(address.sin_port)).number, ntohs(address.sin_port));
}

TEST(Host, TokensAre128BitsAndDiffer) {
  EXPECT_EQ(make_job_token().size(), 32u);
  EXPECT_NE(make_job_token(), make_job_token());
}

}  // namespace
}  // namespace zeropage::launch
