#include "zeropage/report/save_progress.h"

#include <gtest/gtest.h>

namespace zeropage::report {
namespace {

// Catches a line for very short saves, a line that flickers, and a line that remains after the save.
TEST(SaveProgress, AppearsWhenItTakesLongAndGoesAway) {
  double now_s = 100;
  std::string shown;
  SaveProgress line(
      "step", [&] { return now_s; }, [&](std::string_view text) { shown += text; });
  const auto shown_by = [&](double seconds, std::int64_t done_bytes) {
    shown.clear();
    now_s += seconds;
    line.update(done_bytes, 1'250'000'000);
    return shown;
  };
  EXPECT_EQ(shown_by(0.9, 100'000'000), "");
  EXPECT_EQ(shown_by(0.4, 312'500'000), "\rsaving step: 25% of 1.25GB, 4s left");  // after 1.3 s
  EXPECT_EQ(shown_by(0.05, 400'000'000), "");
  EXPECT_EQ(shown_by(1.65, 625'000'000), "\rsaving step: 50% of 1.25GB, 3s left");
  EXPECT_EQ(shown_by(1.0, 1'250'000'000), "\r" + std::string(35, ' ') + "\r");
}

}  // namespace
}  // namespace zeropage::report
