#include "zeropage/checkpoint/load.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "zeropage/base/error.h"
#include "zeropage/checkpoint/save.h"
#include "zeropage/checkpoint/steps.h"

namespace zeropage::checkpoint {

Checkpoint::Checkpoint(FileSystem& files, std::string path)
    : files_(files), path_(std::move(path)), manifest_(read_manifest(files, path_)) {
  shards_.resize(static_cast<std::size_t>(manifest_.world_size));
  std::sort(manifest_.tensors.begin(), manifest_.tensors.end(),
            [](const auto& a, const auto& b) { return a.info.name < b.info.name; });
}

const TensorRecord* Checkpoint::find(const std::string& tensor) const {
  const auto found =
      std::lower_bound(manifest_.tensors.begin(), manifest_.tensors.end(), tensor,
                       [](const TensorRecord& record, const std::string& name) { return record.info.name < name; });
  return found != manifest_.tensors.end() && found->info.name == tensor ? &*found : nullptr;
}

ShardReader& Checkpoint::shard(int rank) {
  auto& reader = shards_[static_cast<std::size_t>(rank)];
  if (reader) return *reader;
  const std::string path = fmt::format("{}/{}", path_, shard_file_name(rank, manifest_.world_size));
  auto opened = std::make_unique<ShardReader>(files_, path, manifest_.shards[rank], manifest_.chunk_bytes);
  std::size_t expected = 0;
  for (const auto& tensor : manifest_.tensors) {
    for (const auto& segment : tensor.segments) {
      if (segment.rank != rank) continue;
      ++expected;
      const auto stored = opened->tensors().find(tensor.info.name);
      const std::int64_t bytes = segment.numel * dtype_bytes(tensor.info.dtype, path);
      if (stored == opened->tensors().end() || stored->second.info.dtype != tensor.info.dtype ||
          stored->second.bytes != bytes) {
        throw CheckpointError(fmt::format("{}: tensor '{}' is not there as the manifest says ({}, {} bytes)", path,
                                          tensor.info.name, tensor.info.dtype, bytes));
      }
    }
  }
  const auto has_data = [](const auto& item) { return item.second.bytes > 0; };
  const auto held = std::count_if(opened->tensors().begin(), opened->tensors().end(), has_data);
  if (static_cast<std::size_t>(held) != expected) {
    throw CheckpointError(fmt::format("{}: holds {} tensors; the manifest says {}", path, held, expected));
  }
  reader = std::move(opened);
  return *reader;
}

void Checkpoint::read(const TensorRecord& tensor, std::int64_t offset, std::int64_t numel, std::byte* out) {
  const std::int64_t element = dtype_bytes(tensor.info.dtype, path_);
  for (const auto& segment : tensor.segments) {
    const std::int64_t begin = std::max(offset, segment.offset);
    const std::int64_t end = std::min(offset + numel, segment.offset + segment.numel);
    if (begin >= end) continue;
    auto& reader = shard(segment.rank);
    const auto& stored = reader.tensors().at(tensor.info.name);
    reader.read(stored.begin + (begin - segment.offset) * element, out + (begin - offset) * element,
                (end - begin) * element, "tensor '" + tensor.info.name + "'");
  }
}

void Checkpoint::verify() {
  for (int rank = 0; rank < manifest_.world_size; ++rank) verify_shard(rank);
}

std::optional<std::string> choose_step(FileSystem& files, const std::string& folder,
                                       const std::optional<std::string>& tag) {
  if (tag) {
    check_tag(*tag);
    const std::string path = fmt::format("{}/{}", folder, *tag);
    if (files.exists(path)) return path;
    std::vector<std::string> tags;
    for (const auto& step : list_steps(files, folder)) tags.push_back(step.tag);
    throw CheckpointError(fmt::format("there is no checkpoint '{}' in {}; there are: {}", *tag, folder,
                                      tags.empty() ? "none" : fmt::format("{}", fmt::join(tags, ", "))));
  }
  const auto steps = list_steps(files, folder);
  const auto sound = std::find_if(steps.begin(), steps.end(), [](const auto& step) { return step.latest; });
  const std::string hint = latest_hint(files, folder);
  const auto hinted = std::find_if(steps.begin(), steps.end(), [&](const auto& step) { return step.tag == hint; });
  if (hinted != steps.end() && !hinted->problem.empty()) {
    throw CheckpointError(fmt::format(
        "{}; {}", hinted->problem,
        sound == steps.end() ? "there is no other to fall back to"
                             : fmt::format("the newest sound one is '{}': load it by its tag", sound->tag)));
  }
  if (sound == steps.end()) return std::nullopt;
  return sound->path;
}

}  // namespace zeropage::checkpoint
