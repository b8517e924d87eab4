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

/// A step whose manifest has been checked. Shard files are opened when they are first needed, and stay open; each is
/// compared with the manifest then, and every chunk with its digest before its bytes are handed out. So all that is
/// read is one step, whatever others do to the folder; when they have replaced or removed the step, that is an error
/// that says so. Memory: one chunk per open shard.
class Checkpoint {
 public:
  /// Reads the manifest once. Errors: IoError, CheckpointError.
  Checkpoint(FileSystem& files, std::string path);

  const std::string& path() const { return path_; }
  const Manifest& manifest() const { return manifest_; }

  /// Of the manifest, and with it of every byte of the step: what has the same digest is the same step.
  const std::string& digest() const { return digest_; }

  /// The record of a tensor, or null.
  const TensorRecord* find(const std::string& tensor) const;

  /// Elements [offset, offset + numel) of a flat tensor, from as many shards as they lie in. Reads only the chunks they
  /// lie in.
  /// Errors: IoError and CheckpointError naming file, tensor and offset.
  void read(const TensorRecord& tensor, std::int64_t offset, std::int64_t numel, std::byte* out);

  /// Compares every byte of every shard with its digest, and the shards' headers with the manifest.
  void verify();

  /// The same for one shard.
  void verify_shard(int rank) { shard(rank).verify(); }

 private:
  struct Shard {
    std::unique_ptr<ShardReader> reader;  ///< null until it is needed
    std::vector<std::pair<const TensorRecord*, std::int64_t>> expected =
        {};  ///< what the manifest says it holds; elements
  };

  ShardReader& shard(int rank);
  void open_shard(int rank, Shard& shard) const;
  bool is_still_there() const;

  FileSystem& files_;
  std::string path_;
  std::string digest_;
  Manifest manifest_;
  std::vector<Shard> shards_;
};

}  // namespace zeropage::checkpoint
