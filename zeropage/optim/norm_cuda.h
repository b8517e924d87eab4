/// \file
/// The sums of squares of norm.h on a GPU, with the host's bits, for any number of pieces in few launches. Only built
/// with a CUDA compiler and a torch with CUDA (CMakeLists.txt).
#pragma once

#include <cstdint>
#include <vector>

#include "zeropage/optim/device_kernels.h"

namespace zeropage::optim {

/// Starts kernels on `stream` (a cudaStream_t) that write the sum of each block's squares to `blocks`, piece after
/// piece. Added in this order they are SquareSum::sum() of a piece, bit for bit. `lanes`: SquareSum::kLanes doubles for
/// each block, as working memory. Both are on the device.
/// Cost: one read of the pieces. Errors: UsageError for other types than fp32, bf16 and fp16; Error when CUDA refuses a
/// launch.
void square_on_cuda(const std::vector<SquaredPiece>& pieces, double* lanes, double* blocks, void* stream);

}  // namespace zeropage::optim
