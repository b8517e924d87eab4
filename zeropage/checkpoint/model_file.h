/// \file
/// The model in a checkpoint, without the rest of the training state: its tensors by the names of a state dict, and its
/// export to safetensors files that other libraries load.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "zeropage/checkpoint/load.h"

namespace zeropage::checkpoint {

/// A parameter or buffer.
struct ModelTensor {
  std::string name;
  std::vector<std::string> aliases;  ///< other names of a tied parameter
  std::vector<std::int64_t> shape;
  std::vector<std::int64_t> order;  ///< as ParameterRecord: the stored extents are the shape's in this order
  std::string stored;               ///< the most precise tensor of it in the checkpoint
  std::string compute;              ///< the tensor in the type of the computation
  bool trainable = false;
};

/// All parameters of the checkpoint, in the order of the model, then the buffers of the state dict. Errors:
/// CheckpointError.
std::vector<ModelTensor> model_tensors(const Checkpoint& step);

inline constexpr const char* kModelIndexName = "model.safetensors.index.json";

struct ExportOptions {
  std::string folder;                           ///< made if missing; other files in it are not changed
  std::string dtype = "F32";                    ///< F32, BF16 or F16, for all of F32, BF16 and F16; other types stay
  std::int64_t max_file_bytes = 5'000'000'000;  ///< of tensor data; a larger tensor gets a file of its own
  bool exclude_frozen = false;
};

/// Writes model.safetensors, or model-00001-of-0000N.safetensors with model.safetensors.index.json; tied parameters
/// once, under their first name. Returns the files' paths. F32 values are from the masters if there are any. Everything
/// that is read is compared with its digest. The files are written in a folder with a temporary name and get their
/// names when all are complete and durable, the index last: a killed export leaves no file that can be loaded. Existing
/// files are never replaced. After an error the new files are removed. Memory: one chunk per shard of the checkpoint,
/// and a whole tensor if it is not row-major. Errors: ConfigError, IoError, CheckpointError.
std::vector<std::string> export_model(FileSystem& files, Checkpoint& step, const ExportOptions& options);

}  // namespace zeropage::checkpoint
