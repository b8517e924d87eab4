/// \file
/// What ranks tell each other: that they were started alike, and, once per step, the global check.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "zeropage/comm/communicator.h"
#include "zeropage/layout/layout.h"

namespace zeropage::engine {

/// Collective: compares `text` (one fact per line) over the ranks, by hash first. Names the ranks that differ from rank
/// 0 and the first line that does; nothing when all are alike.
std::optional<std::string> difference_between_ranks(comm::Communicator& communicator, const std::string& text);

/// Collective: a warning on rank 0 where ranks have other versions of zeropage or of torch and its libraries, or where
/// torch chose other instructions (AVX2, AVX512) for their processors. Cost: one small exchange.
void warn_of_different_software(comm::Communicator& communicator);

/// Collective: as difference_between_ranks, but a difference is a PeerError on every rank.
void require_same_everywhere(comm::Communicator& communicator, const std::string& text);

/// Facts beside the step itself: one rank says so, and all ranks act on it in the same step.
struct StepFlags {
  bool save_failed = false;     ///< a save in the background has ended with an error
  bool stop_requested = false;  ///< somebody has asked this rank to end
  bool calls = false;           ///< the program has a part in this step: its optimizer, or hooks
  bool wrote = false;           ///< something wrote parameters outside an update
};

/// The smaller index of a parameter; -1 is none.
std::int64_t first_parameter(std::int64_t one, std::int64_t other);

/// What one rank brings to the global check of a step.
struct LocalCheck {
  double sum_of_squares = 0.0;           ///< of this rank's part of the summed gradients, unscaled by anything
  std::int64_t overflow_parameter = -1;  ///< the first parameter whose gradient here is not finite
  std::uint64_t trace_hash = 0;
  StepFlags flags;
};

/// What all ranks agree on before any state changes.
struct GlobalCheck {
  double sum_of_squares = 0.0;
  std::int64_t overflow_parameter = -1;  ///< the first on any rank
  bool traces_agree = false;
  StepFlags flags;  ///< of any rank
  std::vector<bool>
      received;  ///< parameters that got a gradient anywhere; not from this exchange, but from the reducer
};

/// Collective: two small exchanges. `written`: per page, whether something wrote it on this rank outside an update.
/// `digest(parameter)`: 16 characters that say what this rank has of a parameter; blanks: nothing that it wrote.
/// Errors: PeerError on every rank, when a parameter of a page that some rank wrote is not the same on all.
void require_same_writes(comm::Communicator& communicator, const layout::Layout& layout,
                         const std::vector<bool>& written, const std::function<std::string(int parameter)>& digest);

/// Collective: one small exchange. Norms are added in double in the order of the ranks.
GlobalCheck agree_on_step(comm::Communicator& communicator, const LocalCheck& mine);

}  // namespace zeropage::engine
