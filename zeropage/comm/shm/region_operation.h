/// \file
/// One rank's execution of a collective: its buffers, the agreed route, and the steps of that route (see
/// region_control.h).
#pragma once

#include <cstdint>
#include <vector>

#include "zeropage/comm/communicator.h"
#include "zeropage/comm/shm/region_control.h"

namespace zeropage::comm {

/// The data between this rank and another one in an all_to_all.
struct Part {
  std::int64_t sent_bytes = 0;
  std::int64_t received_bytes = 0;
  std::int64_t begin = 0;  ///< offset of the other rank's part in its input
};

enum class Route : std::uint8_t { kInline, kDirect, kStaged };

struct Operation {
  // Fixed when it starts.
  Call call;
  const std::byte* input = nullptr;  ///< this rank's own; for broadcast and all_reduce the same as output
  std::byte* output = nullptr;
  DType out_dtype = DType::kOther;
  bool accumulate = false;
  OnReduced on_reduced;        ///< of reduce_scatter and all_reduce
  std::vector<Part> parts;     ///< of an all_to_all, by rank
  std::int64_t own_bytes = 0;  ///< of an all_to_all: of the input
  std::uint64_t sequence = 0;

  // Fixed when all ranks have started it.
  bool agreed = false;
  Route route = Route::kInline;
  std::vector<const std::byte*> peer_inputs;  ///< direct: where each rank's input lies in this process
  std::uint64_t base = 0;                     ///< steps of all earlier collectives
  std::int64_t steps = 0;

  std::int64_t step = 0;  ///< steps done by this rank
  bool complete = false;

  bool executed() const { return agreed && step == steps; }
  std::uint64_t end() const { return base + static_cast<std::uint64_t>(steps); }
};

/// Bytes of the input of one rank (reduce_scatter: the whole buffer; all_to_all: at most).
std::int64_t input_bytes(const Call& call, int size);

/// Bytes of this rank's input.
std::int64_t own_input_bytes(const Operation& op, int size);

/// The number of steps of the operation on its route.
std::int64_t count_steps(const Operation& op, int size);

/// Runs step `op.step`, whose precondition holds. Returns the bytes read from other ranks.
std::int64_t run_step(const Operation& op, ControlBlock& control, int rank);

/// Runs the whole operation if there is only one rank.
void run_alone(const Operation& op);

}  // namespace zeropage::comm
