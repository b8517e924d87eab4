/// \file
/// Comparisons between ranks: of their models and configurations at the start, and the global check once per step. All
/// of them are over the ranks of `communicator.job()`.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "zeropage/comm/communicator.h"
#include "zeropage/layout/layout.h"

namespace zeropage::engine {

/// Collective: compares `text` (one fact per line) over the ranks, by hash first. Returns the ranks that differ from
/// rank 0 and the first different line; nothing when all ranks agree.
std::optional<std::string> difference_between_ranks(comm::Communicator& communicator, const std::string& text);

/// Collective: a warning on rank 0 if ranks have different versions of zeropage or of torch and its libraries, or if
/// torch uses different instructions (AVX2, AVX512) for their processors. Cost: one small exchange.
void warn_of_different_software(comm::Communicator& communicator);

/// Collective: like difference_between_ranks, but a difference raises PeerError on every rank.
void require_same_everywhere(comm::Communicator& communicator, const std::string& text);

/// Facts that are set on some rank and that all ranks then act on in the same step.
struct StepFlags {
  bool save_failed = false;     ///< a save in the background has ended with an error
  bool stop_requested = false;  ///< this rank was asked to stop
  bool calls = false;           ///< the program takes part in this step: with its optimizer, or hooks
  bool wrote = false;           ///< something wrote parameters outside an update
};

/// The smaller of two parameter indices; -1 means none.
std::int64_t first_parameter(std::int64_t one, std::int64_t other);

/// One rank's input to the global check of a step.
struct LocalCheck {
  double sum_of_squares = 0.0;           ///< of this rank's part of the summed gradients, without any scaling
  std::int64_t overflow_parameter = -1;  ///< the first parameter whose gradient here is not finite
  std::uint64_t trace_hash = 0;
  StepFlags flags;
};

/// The result that all ranks agree on before any state changes.
struct GlobalCheck {
  double sum_of_squares = 0.0;
  std::int64_t overflow_parameter = -1;  ///< the first parameter with such a gradient on any rank
  bool traces_agree = false;
  StepFlags flags;             ///< the flags of all ranks, combined
  std::vector<bool> received;  ///< parameters that got a gradient on any rank; from the reducer, not from this exchange
};

/// Collective: two small exchanges. `written`: per page, whether something wrote it on this rank outside an update.
/// `digest(parameter)`: 16 characters that identify this rank's values of a parameter; blanks: it wrote nothing.
/// Errors: PeerError on every rank, when a parameter in a page that some rank wrote differs between ranks.
void require_same_writes(comm::Communicator& communicator, const layout::Layout& layout,
                         const std::vector<bool>& written, const std::function<std::string(int parameter)>& digest);

/// Collective: one small exchange. Norms are added in double in the order of the ranks, over one group of them: each
/// group has all sums (zeropage.shard_ranks).
GlobalCheck agree_on_step(comm::Communicator& communicator, const LocalCheck& mine);

}  // namespace zeropage::engine
