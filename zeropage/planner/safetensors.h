/// \file
/// Counts the parameters of a safetensors file. Only its header is read, and everything in it is checked.
///
///   1. The first 8 bytes are the header's length, little endian; at most 100 MB, and no longer than the file.
///   2. The header is a JSON object: name -> {"dtype", "shape", "data_offsets": [begin, end)}, and "__metadata__".
///   3. Offsets are within the file, shapes and types give exactly as many bytes, and names are unique.
///   4. An index names the file of each tensor in "weight_map"; the files are in the folder of the index. Every file is
///      read as above, and must hold the tensors that the index names for it.
///
/// Format: https://huggingface.co/docs/safetensors
#pragma once

#include <filesystem>

#include "zeropage/planner/model.h"

namespace zeropage::planner {

/// All tensors of a .safetensors file as trainable parameters. Cost: reads the header. Errors: ConfigError for a file
/// with another structure, IoError.
Model read_safetensors(const std::filesystem::path& path);

/// The same for the files of a *.safetensors.index.json.
Model read_safetensors_index(const std::filesystem::path& path);

}  // namespace zeropage::planner
