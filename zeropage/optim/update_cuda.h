/// \file
/// The updates of update.h on a GPU: the bits of the scalar reference, for any number of pieces in few launches. Only
/// built with a CUDA compiler and a torch with CUDA (CMakeLists.txt).
#pragma once

#include <vector>

#include "zeropage/optim/device_kernels.h"

namespace zeropage::optim {

/// Starts the update of all pieces on `stream` (a cudaStream_t): one launch for up to 32 pieces that are alike: with
/// the same kind of optimizer and the same types, and either all or none with masters. Cost: one pass over memory.
/// Errors: UsageError as update; Error when CUDA refuses a launch.
void update_on_cuda(const std::vector<UpdatePiece>& pieces, void* stream);

}  // namespace zeropage::optim
