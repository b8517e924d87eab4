/// \file
/// A rank's description of a collective for its peers, so that all ranks can check that they start the same one.
#pragma once

#include <cstdint>
#include <string>

#include "zeropage/base/dtype.h"
#include "zeropage/comm/communicator.h"

namespace zeropage::comm {

enum class OpKind : std::uint8_t { kAllGather, kReduceScatter, kAllReduce, kBroadcast, kBarrier, kAllToAll };

constexpr std::int64_t kPrivate = -1;

/// Sent between ranks as plain bytes.
struct Call {
  OpKind kind = OpKind::kBarrier;
  DType dtype = DType::kOther;
  std::int32_t root = 0;
  std::int64_t numel =
      0;  ///< of the shard (all_gather, reduce_scatter), of rank 0's parts or of the largest part (all_to_all), or of the buffer
  std::int64_t tag_id = 0;
  std::uint64_t tag_hash = 0;      ///< of the whole text
  std::int64_t memory = kPrivate;  ///< number of the Memory with the input; only this and the offset may differ
  std::int64_t memory_offset = 0;
  char tag_text[80] = {};  ///< the beginning of the text, zero-terminated
};

/// Bytes from `from` to all of `size` ranks. Errors: UsageError for a negative size.
std::int64_t sent_bytes(const PartBytes& part_bytes, int from, int size);

/// Bytes from all of `size` ranks to `to`. Errors: UsageError for a negative size.
std::int64_t received_bytes(const PartBytes& part_bytes, int to, int size);

/// The largest part from any rank to any other. Cost: size^2 calls.
std::int64_t largest_part_bytes(const PartBytes& part_bytes, int size);

/// Sets the tag.
void set_tag(Call& call, const Tag& tag);

/// "all_gather of 12 bytes ('gather page' 3)".
std::string describe_call(const Call& call);

/// True if both ranks describe the same collective.
bool same_call(const Call& a, const Call& b);

/// The error message of `rank`, which waits for `what`, about a rank that has closed its communicator.
std::string describe_leaver(int leaver, int rank, const std::string& what);

/// The error message for two ranks whose collectives with the number `sequence` differ, with the most frequent cause.
std::string describe_mismatch(std::uint64_t sequence, int rank_a, const Call& a, int rank_b, const Call& b);

}  // namespace zeropage::comm
