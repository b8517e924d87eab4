// Tests of SIGTERM and of the objects that handle it.
#include "zeropage/session/preemption.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <optional>
#include <thread>

namespace zeropage::session {
namespace {

std::atomic<int> own_signals{0};
void count_signal(int) { ++own_signals; }

bool becomes_true(const std::atomic<bool>& value) {
  for (int i = 0; i < 500 && !value; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  return value;
}

/// Runs each test in a process of its own, because a process that has begun to end cannot be reused. The body's result
/// is the exit code.
template <class Body>
int exit_code_of(Body body) {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(body());
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

// Catches a signal that is lost because the engine made first has ended first.
TEST(Preemption, TheOneMadeLastGetsTheSignalWhateverEndsFirst) {
  EXPECT_EQ(exit_code_of([] {
              std::atomic<bool> first{false};
              std::atomic<bool> second{false};
              std::optional<Preemption> one(
                  std::in_place, [&] { first = true; }, 1000.0);
              const Preemption two([&] { second = true; }, 1000.0);
              one.reset();
              ::raise(SIGTERM);
              return becomes_true(second) && !first ? 0 : 1;
            }),
            0);
}

// Catches a program's handler that is not restored, and a handler installed later that is removed.
TEST(Preemption, TheHandlerOfTheProgramStays) {
  EXPECT_EQ(exit_code_of([] {
              ::signal(SIGTERM, &count_signal);
              {
                const Preemption watched([] {}, 1000.0);
              }
              ::raise(SIGTERM);
              if (own_signals != 1) return 1;
              ::signal(SIGTERM, SIG_IGN);
              {
                const Preemption watched([] {}, 1000.0);
                ::signal(SIGTERM, &count_signal);
              }
              ::raise(SIGTERM);
              return own_signals == 2 ? 0 : 2;
            }),
            0);
}

// Catches a forked child whose end by SIGTERM ends its parent, and one that ignores it.
TEST(Preemption, AForkedChildHasTheHandlerFromBefore) {
  EXPECT_EQ(exit_code_of([] {
              std::atomic<bool> stopped{false};
              const Preemption watched([&] { stopped = true; }, 1000.0);
              const int child = exit_code_of([] { return ::raise(SIGTERM); });
              if (child != 128 + SIGTERM || stopped) return 1;
              ::raise(SIGTERM);
              return becomes_true(stopped) ? 0 : 2;
            }),
            0);
}

// Catches a second signal that does not end the process at once, and a grace period that does not end.
TEST(Preemption, ASecondSignalAndTheEndOfTheGraceEndTheProcess) {
  const auto ended = [](double grace_s, int signals) {
    return exit_code_of([=] {
      std::atomic<bool> stopped{false};
      const Preemption watched([&] { stopped = true; }, grace_s);
      ::raise(SIGTERM);
      if (!becomes_true(stopped)) return 1;
      if (signals == 2) ::raise(SIGTERM);
      std::this_thread::sleep_for(std::chrono::seconds(20));
      return 2;
    });
  };
  EXPECT_EQ(ended(1000.0, 2), 128 + SIGTERM);
  EXPECT_EQ(ended(0.05, 1), 75);
}

}  // namespace
}  // namespace zeropage::session
