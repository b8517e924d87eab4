#include "zeropage/comm/call.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "zeropage/base/digest.h"
#include "zeropage/base/error.h"

namespace zeropage::comm {
namespace {

const char* op_name(OpKind kind) {
  switch (kind) {
    case OpKind::kAllGather: return "all_gather";
    case OpKind::kReduceScatter: return "reduce_scatter";
    case OpKind::kAllReduce: return "all_reduce";
    case OpKind::kBroadcast: return "broadcast";
    case OpKind::kBarrier: return "barrier";
    case OpKind::kAllToAll: return "all_to_all";
  }
  return "unknown";
}

/// The most frequent cause in a script when its ranks are at two different calls.
const char* usual_cause(const Call& a, const Call& b) {
  const auto is_one_of = [&](auto... strings) {
    return ((std::string_view(a.tag_text) == strings || std::string_view(b.tag_text) == strings) || ...);
  };
  if (is_one_of("saving a checkpoint", "checkpoint records", "lengths of checkpoint records")) {
    return "Usual cause: save_checkpoint or load_checkpoint is called by some ranks only; call it on every rank";
  }
  if (is_one_of("memory report"))
    return "Usual cause: memory_report is called by some ranks only; call it on every rank";
  if (is_one_of("models and configurations", "comparison of model and configuration", "initial values")) {
    return "Usual cause: some ranks make another engine than the others, or make engines in another order";
  }
  return "Usual cause: a rank skipped a batch or got fewer of them, or some ranks only evaluate, save, or print a "
         "sharded parameter; do these on every rank";
}

std::int64_t checked(std::int64_t bytes) {
  if (bytes < 0) throw UsageError(fmt::format("all_to_all: a part of {} bytes; sizes are at least 0", bytes));
  return bytes;
}

}  // namespace

std::int64_t sent_bytes(const PartBytes& part_bytes, int from, int size) {
  std::int64_t bytes = 0;
  for (int to = 0; to < size; ++to) bytes += checked(part_bytes(from, to));
  return bytes;
}

std::int64_t received_bytes(const PartBytes& part_bytes, int to, int size) {
  std::int64_t bytes = 0;
  for (int from = 0; from < size; ++from) bytes += checked(part_bytes(from, to));
  return bytes;
}

std::int64_t largest_part_bytes(const PartBytes& part_bytes, int size) {
  std::int64_t bytes = 0;
  for (int from = 0; from < size; ++from) {
    for (int to = 0; to < size; ++to) bytes = std::max(bytes, checked(part_bytes(from, to)));
  }
  return bytes;
}

void set_tag(Call& call, const Tag& tag) {
  call.tag_id = tag.id;
  call.tag_hash = hash64(tag.what);
  std::memcpy(call.tag_text, tag.what.data(), std::min(tag.what.size(), sizeof(call.tag_text) - 1));
}

std::string describe_call(const Call& call) {
  std::string what = op_name(call.kind);
  if (call.kind != OpKind::kBarrier) {
    what += fmt::format(" of {} {}", call.numel, call.dtype == DType::kOther ? "bytes" : dtype_name(call.dtype));
  }
  if (call.kind == OpKind::kBroadcast) what += fmt::format(" from rank {}", call.root);
  return what + fmt::format(" ('{}' {})", call.tag_text, call.tag_id);
}

bool same_call(const Call& a, const Call& b) {
  return a.kind == b.kind && a.dtype == b.dtype && a.root == b.root && a.numel == b.numel && a.tag_id == b.tag_id &&
         a.tag_hash == b.tag_hash;
}

std::string describe_leaver(int leaver, int rank, const std::string& what) {
  return fmt::format(
      "rank {} has reached the end of its script, or closed its engine, while rank {} waits for {}. Where it ended "
      "with "
      "an error, its own output has the cause; where it did not, it has done fewer steps than the others: give all "
      "ranks "
      "the same number of batches",
      leaver, rank, what);
}

std::string describe_mismatch(std::uint64_t sequence, int rank_a, const Call& a, int rank_b, const Call& b) {
  return fmt::format(
      "ranks do not agree on collective {}: rank {} calls {}, rank {} calls {}; all ranks must start the same "
      "collectives, with the same sizes and types, in the same order. {}",
      sequence, rank_a, describe_call(a), rank_b, describe_call(b), usual_cause(a, b));
}

}  // namespace zeropage::comm
