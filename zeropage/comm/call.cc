#include "zeropage/comm/call.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

namespace zeropage::comm {
namespace {

const char* op_name(OpKind kind) {
  switch (kind) {
    case OpKind::kAllGather: return "all_gather";
    case OpKind::kReduceScatter: return "reduce_scatter";
    case OpKind::kAllReduce: return "all_reduce";
    case OpKind::kBroadcast: return "broadcast";
    case OpKind::kBarrier: return "barrier";
  }
  return "unknown";
}

std::uint64_t hash_text(std::string_view text) {  // FNV-1a
  std::uint64_t hash = 0xcbf29ce484222325u;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return hash;
}

}  // namespace

void set_tag(Call& call, const Tag& tag) {
  call.tag_id = tag.id;
  call.tag_hash = hash_text(tag.what);
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

std::string describe_mismatch(std::uint64_t sequence, int rank_a, const Call& a, int rank_b, const Call& b) {
  return fmt::format(
      "ranks do not agree on collective {}: rank {} calls {}, rank {} calls {}; all ranks must start the same "
      "collectives, with the same sizes and types, in the same order",
      sequence, rank_a, describe_call(a), rank_b, describe_call(b));
}

}  // namespace zeropage::comm
