#include "zeropage/checkpoint/load.h"

#include <fmt/format.h>

#include <algorithm>

#include "zeropage/base/error.h"
#include "zeropage/checkpoint/steps.h"

namespace zeropage::checkpoint {

Checkpoint::Checkpoint(FileSystem& files, std::string path) : files_(files), path_(std::move(path)) {
  const std::string file = manifest_path(path_), text = read_text(files_, file, kMaxManifestBytes);
  manifest_ = manifest_from_text(text, file);
  digest_ = manifest_digest(text);
  shards_.resize(static_cast<std::size_t>(manifest_.world_size));
  std::sort(manifest_.tensors.begin(), manifest_.tensors.end(),
            [](const auto& a, const auto& b) { return a.info.name < b.info.name; });
  for (const auto& tensor : manifest_.tensors) {
    for (const auto& segment : tensor.segments) shards_[segment.rank].expected.emplace_back(&tensor, segment.numel);
  }
}

const TensorRecord* Checkpoint::find(const std::string& tensor) const {
  const auto found =
      std::lower_bound(manifest_.tensors.begin(), manifest_.tensors.end(), tensor,
                       [](const TensorRecord& record, const std::string& name) { return record.info.name < name; });
  return found != manifest_.tensors.end() && found->info.name == tensor ? &*found : nullptr;
}

ShardReader& Checkpoint::shard(int rank) {
  auto& shard = shards_[static_cast<std::size_t>(rank)];
  if (shard.reader) return *shard.reader;
  try {
    open_shard(rank, shard);
  } catch (const Error& error) {
    if (is_still_there()) throw;
    throw CheckpointError(fmt::format("{} was saved again, moved or removed while it was being read ({}): load again",
                                      path_, error.what()));
  }
  return *shard.reader;
}

bool Checkpoint::is_still_there() const {
  try {
    return manifest_digest(read_text(files_, manifest_path(path_), kMaxManifestBytes)) == digest_;
  } catch (const Error&) {
    return false;
  }
}

void Checkpoint::open_shard(int rank, Shard& shard) const {
  const auto& expected = shard.expected;
  const std::string path = fmt::format("{}/{}", path_, shard_file_name(rank, manifest_.world_size));
  auto opened = std::make_unique<ShardReader>(files_, path, manifest_.shards[rank], manifest_.chunk_bytes);
  for (const auto& [tensor, numel] : expected) {
    const auto stored = opened->tensors().find(tensor->info.name);
    const std::int64_t bytes = numel * dtype_bytes(tensor->info.dtype, path);
    if (stored == opened->tensors().end() || stored->second.info.dtype != tensor->info.dtype ||
        stored->second.bytes != bytes) {
      throw CheckpointError(fmt::format("{}: tensor '{}' is not there as the manifest says ({}, {} bytes)", path,
                                        tensor->info.name, tensor->info.dtype, bytes));
    }
  }
  const auto has_data = [](const auto& item) { return item.second.bytes > 0; };
  const auto held = std::count_if(opened->tensors().begin(), opened->tensors().end(), has_data);
  if (static_cast<std::size_t>(held) != expected.size()) {
    throw CheckpointError(fmt::format("{}: holds {} tensors; the manifest says {}", path, held, expected.size()));
  }
  shard.reader = std::move(opened);
}

void Checkpoint::read(const TensorRecord& tensor, std::int64_t offset, std::int64_t numel, std::byte* out) {
  const std::int64_t element = dtype_bytes(tensor.info.dtype, path_);
  const auto ends_before = [](const StoredSegment& s, std::int64_t place) { return s.offset + s.numel <= place; };
  auto segment = std::lower_bound(tensor.segments.begin(), tensor.segments.end(), offset, ends_before);
  for (; segment != tensor.segments.end() && segment->offset < offset + numel; ++segment) {
    const std::int64_t begin = std::max(offset, segment->offset);
    const std::int64_t end = std::min(offset + numel, segment->offset + segment->numel);
    auto& reader = shard(segment->rank);
    const auto& stored = reader.tensors().at(tensor.info.name);
    reader.read(stored.begin + (begin - segment->offset) * element, out + (begin - offset) * element,
                (end - begin) * element, "tensor '" + tensor.info.name + "'");
  }
}

void Checkpoint::verify() {
  for (int rank = 0; rank < manifest_.world_size; ++rank) verify_shard(rank);
}

}  // namespace zeropage::checkpoint
