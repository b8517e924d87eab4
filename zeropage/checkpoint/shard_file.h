/// \file
/// One rank's shard file: a safetensors container (8 bytes of header length, a JSON header, the tensors without gaps),
/// with digests of chunks of equal size from the first byte of the file to the last.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "zeropage/checkpoint/file_system.h"
#include "zeropage/checkpoint/manifest.h"

namespace zeropage::checkpoint {

inline constexpr std::int64_t kMaxHeaderBytes = std::int64_t{64} << 20;

/// Copies bytes [begin, begin + bytes) of a segment to `out`; the source may be host memory, device memory or a file.
using ReadBytes = std::function<void(std::int64_t begin, std::byte* out, std::int64_t bytes)>;

/// This rank's part of a tensor: elements [offset, offset + numel) of its flat form.
struct LocalTensor {
  TensorInfo info;  ///< of the whole tensor
  std::int64_t offset = 0;
  std::int64_t numel = 0;
  ReadBytes read;
};

/// Called with the number of written bytes and the total.
using Progress = std::function<void(std::int64_t done_bytes, std::int64_t total_bytes)>;

/// Writes and syncs a shard file. Tensors are stored by element size, largest first, so that each is aligned. A segment
/// that is the whole tensor keeps its shape, others are flat. Memory: one chunk. Errors: IoError, CheckpointError (a
/// header of more than kMaxHeaderBytes).
ShardRecord write_shard(FileSystem& files, const std::string& path, std::vector<LocalTensor> tensors,
                        std::int64_t chunk_bytes, const Progress& progress = nullptr);

/// The place of a tensor in a shard file.
struct StoredTensor {
  TensorInfo info;
  std::int64_t begin = 0;  ///< offset in the file, in bytes
  std::int64_t bytes = 0;
};

/// Parses a header of a file of `file_bytes`; `text` is the header without the 8 bytes of its length. Checks that the
/// extents are in bounds, without overlap or gap, and have the size of dtype and shape. Errors: CheckpointError naming
/// `origin`.
std::map<std::string, StoredTensor> parse_shard_header(std::string_view text, std::int64_t file_bytes,
                                                       const std::string& origin);

/// Reads a shard file. Every byte is compared with its digest before it is used.
class ShardReader {
 public:
  /// Opens the file and reads its header. Errors: IoError, CheckpointError.
  ShardReader(FileSystem& files, std::string path, const ShardRecord& record, std::int64_t chunk_bytes);

  const std::map<std::string, StoredTensor>& tensors() const { return tensors_; }

  /// Reads [begin, begin + bytes) of the file; `what` describes it in messages. The last chunk is kept, so that reads
  /// in ascending order read each chunk once. Errors: CheckpointError naming file, `what` and offset.
  void read(std::int64_t begin, std::byte* out, std::int64_t bytes, const std::string& what);

  /// Compares all digests.
  void verify();

 private:
  /// `what` is called only for a message.
  void load_chunk(std::int64_t chunk, const std::function<std::string()>& what);

  std::string path_;
  ShardRecord record_;
  std::int64_t chunk_bytes_;
  std::unique_ptr<ReadableFile> file_;
  std::vector<std::byte> chunk_;
  std::int64_t loaded_ = -1;
  std::map<std::string, StoredTensor> tensors_;
};

}  // namespace zeropage::checkpoint
