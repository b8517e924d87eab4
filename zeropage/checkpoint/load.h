/// \file
/// Opening a step and reading from it. Nothing here talks to other ranks.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "zeropage/checkpoint/file_system.h"
#include "zeropage/checkpoint/manifest.h"
#include "zeropage/checkpoint/shard_file.h"

namespace zeropage::checkpoint {

/// A step whose manifest has been checked. Shard files are opened when they are first needed; each is compared with the manifest
/// then, and every chunk with its digest before its bytes are handed out. Memory: one chunk per open shard.
class Checkpoint {
 public:
  /// Errors: IoError, CheckpointError.
  Checkpoint(FileSystem& files, std::string path);

  const std::string& path() const { return path_; }
  const Manifest& manifest() const { return manifest_; }

  /// The record of a tensor, or null.
  const TensorRecord* find(const std::string& tensor) const;

  /// Elements [offset, offset + numel) of a flat tensor, from as many shards as they lie in. Reads only the chunks they lie in.
  /// Errors: IoError and CheckpointError naming file, tensor and offset.
  void read(const TensorRecord& tensor, std::int64_t offset, std::int64_t numel, std::byte* out);

  /// Compares every byte of every shard with its digest, and the shards' headers with the manifest.
  void verify();

  /// The same for one shard.
  void verify_shard(int rank) { shard(rank).verify(); }

 private:
  ShardReader& shard(int rank);

  FileSystem& files_;
  std::string path_;
  Manifest manifest_;
  std::vector<std::unique_ptr<ShardReader>> shards_;
};

/// Finds the step to load. With a tag: that one. Without: the one with the highest sequence among those saved as latest.
/// Returns nullopt when the folder has no step. Errors: CheckpointError for a tag that is not there (with those that are), and,
/// without a tag, when `latest` names a step whose manifest is damaged: naming the newest sound one.
std::optional<std::string> choose_step(FileSystem& files, const std::string& folder,
                                       const std::optional<std::string>& tag);

}  // namespace zeropage::checkpoint
