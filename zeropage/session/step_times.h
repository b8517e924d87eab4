/// \file
/// The times of an optimizer step.
#pragma once

#include <map>
#include <string>

namespace zeropage::session {

/// Seconds by part of a step: "forward", "backward", ...
using Parts = std::map<std::string, double>;

struct StepTimes {
  Parts parts;
  double seconds = 0.0;  ///< since the end of the previous step
};

}  // namespace zeropage::session
