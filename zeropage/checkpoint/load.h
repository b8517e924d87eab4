/// \file
/// Opens a checkpoint and reads from it. Nothing here communicates with other ranks.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "zeropage/checkpoint/file_system.h"
#include "zeropage/checkpoint/manifest.h"
#include "zeropage/checkpoint/shard_file.h"

namespace zeropage::checkpoint {

/// A checkpoint whose manifest has been checked. Shard files are opened when they are first needed, and stay open. Each
/// is then compared with the manifest, and every chunk is compared with its digest before its bytes are returned. So
/// all bytes are from one checkpoint, whatever other processes do to the folder. If they have replaced or removed the
/// checkpoint, the error says so. Memory: one chunk per open shard.
class Checkpoint {
 public:
  /// Reads the manifest once. Errors: IoError, CheckpointError.
  Checkpoint(FileSystem& files, std::string path);

  const std::string& path() const { return path_; }
  const Manifest& manifest() const { return manifest_; }

  /// The digest of the manifest. The manifest has the digests of all shards, so checkpoints with the same digest are
  /// equal.
  const std::string& digest() const { return digest_; }

  /// The record of a tensor, or null.
  const TensorRecord* find(const std::string& tensor) const;

  /// Reads elements [offset, offset + numel) of a flat tensor, from all shards that hold a part of them. Reads only the
  /// chunks that contain them.
  /// Errors: IoError and CheckpointError naming file, tensor and offset.
  void read(const TensorRecord& tensor, std::int64_t offset, std::int64_t numel, std::byte* out);

  /// Compares every byte of every shard with its digest, and the shards' headers with the manifest.
  void verify();

  /// The same for one shard.
  void verify_shard(int rank) { shard(rank).verify(); }

 private:
  struct Shard {
    std::unique_ptr<ShardReader> reader;  ///< null until the first read
    std::vector<std::pair<const TensorRecord*, std::int64_t>> expected =
        {};  ///< its tensors by the manifest; in elements
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
