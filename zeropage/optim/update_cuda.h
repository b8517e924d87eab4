/// \file
/// The updates of update.h on a GPU: the bits of the scalar twin, for any number of pieces in few launches. There only
/// where the build has found a CUDA compiler and a torch with CUDA (CMakeLists.txt).
#pragma once

#include <vector>

#include "zeropage/optim/device_kernels.h"

namespace zeropage::optim {

/// Starts the update of all pieces on `stream` (a cudaStream_t): one launch for up to 32 of those that are alike, which
/// have the same kind of optimizer, the same types, and all of them masters or none. Cost: one pass over memory.
/// Errors: UsageError as update; Error when CUDA refuses a launch.
void update_on_cuda(const std::vector<UpdatePiece>& pieces, void* stream);

}  // namespace zeropage::optim
