// Ranks as processes that connect over TCP and make process groups without Python, like C++ programs on several hosts.
#include "zeropage/comm/c10d/c10d_job.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <sys/socket.h>

#include "zeropage/base/error.h"
#include "zeropage/comm/c10d/c10d_one_rank.h"
#include "zeropage/comm/testing/communicator_conformance.h"
#include "zeropage/comm/testing/test_ranks.h"

namespace zeropage::comm {
namespace {

using std::chrono::milliseconds;

/// A port without a listener. Another program may take it before the test does; the test then fails with "address
/// already in use".
std::uint16_t free_port() {
  const int socket = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  const bool bound = ::bind(socket, reinterpret_cast<sockaddr*>(&address), size) == 0 &&
                     ::getsockname(socket, reinterpret_cast<sockaddr*>(&address), &size) == 0;
  ::close(socket);
  if (!bound) throw IoError("no free port");
  return ntohs(address.sin_port);
}

using Body = std::function<void(const World&, const Meeting&)>;

/// Runs `body` as ranks 0 to `present` - 1 of `size`. Returns the outcomes.
std::vector<std::string> run_job(int size, int present, const Body& body) {
  const Meeting meeting{"127.0.0.1", free_port()};
  std::vector<std::unique_ptr<RankProcess>> ranks;
  for (int r = 0; r < present; ++r) {
    ranks.push_back(std::make_unique<RankProcess>([&, r] { body({r, r, size, size}, meeting); }));
  }
  std::vector<std::string> outcomes;
  for (auto& rank : ranks) outcomes.push_back(rank->outcome());
  return outcomes;
}

std::unique_ptr<Communicator> join(const World& world, const Meeting& meeting, int number, milliseconds timeout) {
  const std::string token(32, 'a');
  return join_c10d_job(world, meeting, token, number, /*aborts=*/number, c10::Device(c10::kCPU),
                       /*deterministic_reduction=*/true, timeout);
}

// Catches differences between a job of one rank and others: sums that are not computed, host values that count as the
// device's. In a separate process, because the threads that torch starts here would be missing in ranks forked later.
TEST(OneRank, Conformance) {
  RankProcess rank([] {
    const auto communicator = make_one_rank_communicator(c10::Device(c10::kCPU), milliseconds(20000));
    run_conformance(*communicator);
    if (communicator->one_sided()) throw Error("peers cannot read the memory of a device");
  });
  EXPECT_EQ(rank.outcome(), "");
}

// Catches a wait that does not end, and an abort that later calls do not see.
TEST(OneRank, WaitsEnd) {
  const auto communicator = make_one_rank_communicator(c10::Device(c10::kCPU), milliseconds(50));
  EXPECT_THROW(communicator->wait_until([] { return false; }, -1, "nothing"), TimeoutError);
  EXPECT_THROW(communicator->barrier({"after it"}), PeerError);
}

class C10dJobConformance : public testing::TestWithParam<int> {};

// Catches groups that differ from torch's for Python, and communicators of one job that mix: the first exists while the
// second is made and used, and the second outlives it.
TEST_P(C10dJobConformance, Holds) {
  const auto outcomes = run_job(GetParam(), GetParam(), [](const World& world, const Meeting& meeting) {
    auto first = join(world, meeting, 0, milliseconds(20000));
    const auto second = join(world, meeting, 1, milliseconds(20000));
    first->barrier({"first"});
    first.reset();
    run_conformance(*second);
  });
  for (const std::string& outcome : outcomes) EXPECT_EQ(outcome, "");
}

INSTANTIATE_TEST_SUITE_P(Sizes, C10dJobConformance, testing::Values(1, 3));

// Catches hosts whose ranks share memory with those of another one, columns that mix, and ranks that form no grid.
TEST(C10dJob, RanksOfTwoHosts) {
  const std::string name = unique_job_name();
  const auto outcomes = run_job(4, 4, [&](const World& job, const Meeting& meeting) {
    const World world{job.rank, job.rank % 2, 4, 2};
    const std::string token(32, 'a');
    const milliseconds timeout(20000);
    if (hosts_of_c10d_job({job.rank, job.rank / 2, 4, 2}, meeting, token, 0, timeout).is_useful()) {
      throw Error("ranks that were dealt out in turn are a table");
    }
    const HostGrid grid = hosts_of_c10d_job(world, meeting, token, 1, timeout);
    if (grid.hosts != 2 || grid.local_size != 2) throw Error("two hosts with two ranks each are no table");
    const auto communicator = join_c10d_hosts(grid, world, meeting, token, 2, /*aborts=*/2, name, true, timeout);
    run_conformance(*communicator);
  });
  for (const std::string& outcome : outcomes) EXPECT_EQ(outcome, "");
}

// Catches a rank that waits for ever for a missing one, and a message without the address of the rendezvous.
TEST(C10dJob, RankThatDoesNotComeIsATimeout) {
  const auto outcomes =
      run_job(2, 1, [](const World& world, const Meeting& meeting) { join(world, meeting, 0, milliseconds(1000)); });
  EXPECT_TRUE(contains(outcomes[0], "TimeoutError: rank 0 of 2 could not join the others at 127.0.0.1:"))
      << outcomes[0];
}

// Catches the same if rank 0, to which the others connect, is missing.
TEST(C10dJob, NobodyListeningIsATimeout) {
  const auto outcomes = run_job(2, 1, [](const World& world, const Meeting& meeting) {
    join({1, 1, 2, 2}, meeting, 0, milliseconds(1000));
  });
  EXPECT_TRUE(contains(outcomes[0], "TimeoutError: rank 1 of 2 could not join the others at 127.0.0.1:"))
      << outcomes[0];
}

}  // namespace
}  // namespace zeropage::comm
