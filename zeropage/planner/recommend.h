/// \file
/// The recommended row, and the reason.
#pragma once

#include <vector>

#include "zeropage/planner/make_plan.h"

namespace zeropage::planner {

/// The share of a memory that a job can fill. The rest is used by the driver's context, workspaces of libraries and
/// gaps between blocks.
inline constexpr double kUsable = 0.92;

/// One row with its reason, see step 5 of plan.h. Without hardware: stage 2, a good first choice.
Recommendation recommend(const Request& request, const std::vector<Row>& rows);

/// The smallest power of two of ranks, on hosts like these, at which stage 3 without offload fits; 0: none up to 2^16.
int ranks_to_fit(const Request& request);

}  // namespace zeropage::planner
