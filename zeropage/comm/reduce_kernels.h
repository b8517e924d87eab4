/// \file
/// The arithmetic of reductions, shared by every communicator that sums on the host: with a single definition of "sum
/// over the ranks", results are bit-identical everywhere.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "zeropage/base/dtype.h"
#include "zeropage/comm/communicator.h"

namespace zeropage::comm {

/// If ranks exchange messages, an all_reduce of at most this many bytes is one gather and a local sum: one round of
/// messages instead of two.
constexpr std::int64_t kSmallReductionBytes = 16384;

/// The type in which terms of `in_dtype` are added up.
constexpr DType sum_dtype_of(DType in_dtype) { return in_dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32; }

/// out[i] = inputs[0][i] + inputs[1][i] + ..., added in that order, in fp32 (fp64 for fp64 inputs), rounded once to
/// `out_dtype` (to nearest, ties to even; NaN stays NaN). With `accumulate` the sum is added to the values of `out`.
/// inputs: at least one, each [numel, in_dtype], any alignment. out: [numel, out_dtype], out_dtype is in_dtype or fp32;
/// fp32 when accumulating. `out` may be one of the inputs when the dtypes are equal, and must not overlap them
/// otherwise.
/// Cost: reads each input once and writes out once (accumulators stay in the L1 cache). After each block of `out`,
/// which is then in that cache, `on_reduced(begin, numel)` is called, unless it is empty. `start`, if given, is a sum
/// [numel, fp32, or fp64 for fp64 inputs] to which the inputs, which may then be empty, are added: the sum over the
/// earlier ranks.
/// Errors: UsageError for combinations of dtypes that are not listed here.
void reduce_ranks(std::span<const std::byte* const> inputs, std::byte* out, std::int64_t numel, DType in_dtype,
                  DType out_dtype, bool accumulate, const OnReduced& on_reduced, const std::byte* start = nullptr);

/// reduce_ranks of `count` inputs that are one behind the other: `terms` [count * numel, in_dtype].
void reduce_consecutive(const std::byte* terms, std::int64_t count, std::byte* out, std::int64_t numel, DType in_dtype,
                        DType out_dtype, bool accumulate, const OnReduced& on_reduced,
                        const std::byte* start = nullptr);

/// Throws UsageError, naming `what`, unless reduce_ranks supports this combination.
void check_reducible(DType in_dtype, DType out_dtype, bool accumulate, const char* what);

}  // namespace zeropage::comm
