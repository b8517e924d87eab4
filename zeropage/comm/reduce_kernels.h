/// \file
/// The arithmetic of reductions, shared by every communicator that sums on the host: one definition of "sum over the
/// ranks" is what makes results bit-identical everywhere.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "zeropage/base/dtype.h"
#include "zeropage/comm/communicator.h"

namespace zeropage::comm {

/// Where ranks exchange messages, an all_reduce of at most so many bytes is one gather and a local sum: one round of
/// messages instead of two.
constexpr std::int64_t kSmallReductionBytes = 16384;

/// out[i] = inputs[0][i] + inputs[1][i] + ..., added in that order, in fp32 (fp64 for fp64 inputs), rounded once to
/// `out_dtype` (to nearest, ties to even; NaN stays NaN). With `accumulate` the sum is added to what `out` holds.
/// inputs: at least one, each [numel, in_dtype], any alignment. out: [numel, out_dtype], out_dtype is in_dtype or fp32;
/// fp32 when accumulating. `out` may be one of the inputs when the dtypes are equal, and must not overlap them else.
/// Cost: reads each input once and writes out once (accumulators stay in the L1 cache). After each block of `out`,
/// which is in that cache then, `on_reduced(begin, numel)` is called, unless it is empty.
/// `start`, where it is given, is a sum [numel, fp32, or fp64 for fp64 inputs] that the inputs, which may be none then,
/// are added to: the sum over the ranks before them.
/// Errors: UsageError for combinations of dtypes that are not listed here.
void reduce_ranks(std::span<const std::byte* const> inputs, std::byte* out, std::int64_t numel, DType in_dtype,
                  DType out_dtype, bool accumulate, const OnReduced& on_reduced, const std::byte* start = nullptr);

/// Throws UsageError, naming `what`, unless reduce_ranks supports this combination.
void check_reducible(DType in_dtype, DType out_dtype, bool accumulate, const char* what);

}  // namespace zeropage::comm
