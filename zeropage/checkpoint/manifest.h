/// \file
/// The manifest of a checkpoint: everything except tensor data, and the place of every element of every tensor.
/// `docs/checkpoint-format.md` specifies the document.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "zeropage/checkpoint/tensor_info.h"
#include "zeropage/checkpoint/untrusted_json.h"
#include "zeropage/optim/loss_scale.h"

namespace zeropage::checkpoint {

inline constexpr int kFormatVersion = 1;
inline constexpr std::int64_t kMaxManifestBytes = std::int64_t{256} << 20;
inline constexpr int kMaxWorldSize = 65536;
inline constexpr std::int64_t kMaxSequence = std::int64_t{1}
                                             << 53;  ///< the largest integer that every JSON reader represents exactly
inline constexpr std::int64_t kDefaultChunkBytes = std::int64_t{1} << 20;

/// The part of a flat tensor that one rank's shard file holds. A rank holds at most one segment of a tensor.
struct StoredSegment {
  int rank = 0;
  std::int64_t offset = 0;  ///< first element, in the flat tensor
  std::int64_t numel = 0;

  bool operator==(const StoredSegment&) const = default;
};

struct TensorRecord {
  TensorInfo info;
  std::vector<StoredSegment> segments;  ///< in the order of offsets, without gap or overlap, covering the tensor

  bool operator==(const TensorRecord&) const = default;
};

/// A shard file; its name follows from rank and world size.
struct ShardRecord {
  std::int64_t bytes = 0;
  std::string digests;  ///< 16 digits per chunk

  bool operator==(const ShardRecord&) const = default;
};

struct ParameterRecord {
  std::string name;
  std::vector<std::string> aliases;  ///< other names of a tied parameter
  bool trainable = true;
  std::int64_t updates = 0;  ///< number of its optimizer steps
  /// The order of the dimensions in memory, outermost first. Its tensors have their extents in this order. Empty:
  /// row-major.
  std::vector<std::int64_t> order = {};

  bool operator==(const ParameterRecord&) const = default;
};

/// The progress of the training.
struct TrainingState {
  std::int64_t global_steps = 0;
  std::int64_t skipped_steps = 0;
  std::int64_t consecutive_skips = 0;
  std::int64_t micro_steps = 0;
  std::optional<std::int64_t> schedule_iteration;
  std::optional<optim::LossScaleState> loss_scale;
  std::optional<std::int64_t>
      samples;  ///< of all ranks, in all steps; empty in imported checkpoints and those of older releases

  bool operator==(const TrainingState&) const = default;
};

struct Manifest {
  std::string library_version;
  std::string run;  ///< the run that saved it; empty: written by an older release
  std::string tag;
  std::int64_t sequence = 0;  ///< counts the saves of a folder, to find the newest without clocks
  bool latest = true;         ///< false: loads without a tag never choose it as the newest
  int world_size = 1;
  int stage = 0;
  bool frozen_excluded = false;
  std::int64_t chunk_bytes = kDefaultChunkBytes;
  std::vector<ShardRecord> shards;
  std::vector<ParameterRecord> parameters;
  std::vector<TensorRecord> tensors;
  TrainingState training;
  std::string config_json = "{}";  ///< the effective configuration, for people
  std::string host_json = "{}";    ///< added by Python or C++: client state, scheduler, random generators

  bool operator==(const Manifest&) const = default;
};

/// "shard-00001-of-00004.safetensors"
std::string shard_file_name(int rank, int world_size);

/// The document, with its digest.
std::string manifest_to_text(const Manifest& manifest);

/// Compares a document with its digest, and returns the part that the digest covers. Errors: CheckpointError naming
/// `origin`.
std::string_view manifest_body(std::string_view text, const std::string& origin);

/// The digest that a document starts with; empty when it does not.
std::string manifest_digest(std::string_view text);

/// Refuses manifests of other formats and versions. Errors: CheckpointError naming `origin`.
void check_format(const ObjectReader& reader, const std::string& origin);

/// The run that saved the checkpoint; empty for older releases.
std::string read_run(const ObjectReader& reader);

/// Reads and checks a document: digest, types, ranges, names, shapes without overflow, segments that cover each tensor
/// exactly, digests as many as chunks. `origin` (the path) is named in messages. Errors: CheckpointError.
Manifest manifest_from_text(const std::string& text, const std::string& origin);

}  // namespace zeropage::checkpoint
