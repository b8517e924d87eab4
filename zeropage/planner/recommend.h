/// \file
/// Which row to choose, and why.
#pragma once

#include <vector>

#include "zeropage/planner/plan.h"

namespace zeropage::planner {

/// Share of a memory that a job can fill: the rest is the driver's context, the libraries' workspaces and gaps between
/// blocks.
inline constexpr double kUsable = 0.92;

/// One row with its reason, as plan.h says in step 5. Without hardware: stage 2, the place to start.
Recommendation recommend(const Request& request, const std::vector<Row>& rows);

/// The smallest power of two of ranks, on hosts like these, at which stage 3 without offload fits; 0: none up to 2^16.
int ranks_to_fit(const Request& request);

}  // namespace zeropage::planner
