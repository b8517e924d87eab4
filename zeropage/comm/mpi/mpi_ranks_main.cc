// The program of each rank in the tests of the communicator over MPI: `mpirun -n N mpi_ranks SCENARIO`. Every rank
// prints one line with its outcome.
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>

#include "zeropage/comm/mpi/mpi_communicator.h"
#include "zeropage/comm/testing/communicator_conformance.h"
#include "zeropage/comm/testing/test_ranks.h"

namespace zeropage::comm {
namespace {

using std::chrono::milliseconds;
using Runtime = std::shared_ptr<MpiRuntime>;

constexpr milliseconds kLong{20000};
constexpr milliseconds kShort{1000};

void reduce_for_ever(Communicator& c, int steps = -1) {
  std::vector<float> data(300000);
  for (std::int64_t i = 0; i != steps; ++i) c.all_reduce(data.data(), 300000, DType::kFloat32, {"sum", i}, {})->wait();
}

/// mpirun sends SIGTERM when the first rank has failed, and a second later SIGKILL: this gives the others time to print
/// their outcomes.
void ignore_sigterm() { signal(SIGTERM, SIG_IGN); }

void conforms(const Runtime& mpi) {
  const auto first = make_mpi_communicator(mpi, kLong);
  const auto second = make_mpi_communicator(mpi, kLong, 1000);  // every message is split
  first->set_checking(false);
  run_conformance(*first);
  // Both in parallel: messages of two communicators do not mix.
  std::string outcome;
  std::thread thread([&] { outcome = outcome_of([&] { reduce_for_ever(*first, 20); }); });
  run_conformance(*second);
  thread.join();
  if (!outcome.empty()) throw Error(outcome);
}

void joins(const Runtime& mpi) {
  for (int i = 0; i < 2; ++i) {
    const auto communicator = join_mpi_job(mpi, kLong);
    if (!communicator->one_sided()) throw Error("ranks of one host do not share memory");
    run_conformance(*communicator);
  }
}

void last_is_stopped(const Runtime& mpi) {
  ignore_sigterm();
  const auto c = make_mpi_communicator(mpi, kShort);
  reduce_for_ever(*c, 3);
  if (c->rank() == c->size() - 1) raise(SIGSTOP);
  reduce_for_ever(*c);
}

void last_is_killed(const Runtime& mpi) {
  const auto c = make_mpi_communicator(mpi, kLong);
  reduce_for_ever(*c, 3);
  if (c->rank() == c->size() - 1) raise(SIGKILL);
  reduce_for_ever(*c);
}

void last_aborts(const Runtime& mpi) {
  ignore_sigterm();
  const auto c = make_mpi_communicator(mpi, kLong);
  reduce_for_ever(*c, 3);
  std::thread other;  // any thread may
  if (c->rank() == c->size() - 1) {
    other = std::thread([&] {
      std::this_thread::sleep_for(milliseconds(100));
      c->abort("out of coffee");
    });
  }
  const std::string outcome = outcome_of([&] { reduce_for_ever(*c); });
  if (other.joinable()) other.join();
  if (outcome_of([&] { c->barrier({"again"}); }) != outcome) throw Error("the error was forgotten");
  throw Error(outcome);
}

void last_leaves(const Runtime& mpi) {
  const auto c = make_mpi_communicator(mpi, kLong);
  reduce_for_ever(*c, 3);
  if (c->rank() != c->size() - 1) reduce_for_ever(*c);
}

void calls_differ(const Runtime& mpi) {
  ignore_sigterm();
  const auto c = make_mpi_communicator(mpi, kLong);
  std::vector<float> data(100);
  c->all_reduce(data.data(), c->rank() == 0 ? 100 : 50, DType::kFloat32, {"sum", 7}, {})->wait();
}

void sizes_differ_unchecked(const Runtime& mpi) {
  ignore_sigterm();
  const auto c = make_mpi_communicator(mpi, kLong);
  c->set_checking(false);
  std::vector<float> data(100);
  c->all_reduce(data.data(), c->rank() == 0 ? 100 : 50, DType::kFloat32, {"sum", 7}, {})->wait();
}

void runtime_starts_twice(const Runtime& mpi) {
  const auto again = MpiRuntime::start();  // simulates a program that has initialised MPI itself
  reduce_for_ever(*make_mpi_communicator(again, kLong), 3);
}

void last_does_not_come(const Runtime& mpi) {
  const char* rank = getenv("OMPI_COMM_WORLD_RANK");
  if (rank == nullptr) rank = getenv("PMI_RANK");
  if (rank != nullptr && std::string(rank) == "0") make_mpi_communicator(mpi, kShort);
  std::this_thread::sleep_for(2 * kShort);
}

}  // namespace
}  // namespace zeropage::comm

int main(int argc, char** argv) {
  using namespace zeropage::comm;
  const std::map<std::string, void (*)(const Runtime&)> scenarios = {
      {"conforms", conforms},
      {"joins", joins},
      {"last_is_stopped", last_is_stopped},
      {"last_is_killed", last_is_killed},
      {"last_aborts", last_aborts},
      {"last_leaves", last_leaves},
      {"calls_differ", calls_differ},
      {"sizes_differ_unchecked", sizes_differ_unchecked},
      {"runtime_starts_twice", runtime_starts_twice},
      {"last_does_not_come", last_does_not_come},
  };
  const auto runtime = MpiRuntime::start();
  const std::string outcome = outcome_of([&] { scenarios.at(argc > 1 ? argv[1] : "")(runtime); });
  const std::string line = "outcome: " + outcome + "\n";
  const bool printed = std::fwrite(line.data(), 1, line.size(), stdout) == line.size() && std::fflush(stdout) == 0;
  return outcome.empty() && printed ? 0 : 1;
}
