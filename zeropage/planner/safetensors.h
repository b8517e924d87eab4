/// \file
/// How many parameters a safetensors file has. Only its header is read, and nothing in it is believed unchecked.
///
///   1. The first 8 bytes are the header's length, little endian; at most 100 MB, and no longer than the file.
///   2. The header is a JSON object: name -> {"dtype", "shape", "data_offsets": [begin, end)}, and "__metadata__".
///   3. Offsets lie in the file, shapes and types give just as many bytes, names are unique.
///   4. An index names the file of each tensor in "weight_map"; the files lie beside it. Every file is read as above,
///      and must hold the tensors that the index looks for there.
///
/// Format: https://huggingface.co/docs/safetensors
#pragma once

#include <filesystem>

#include "zeropage/planner/model.h"

namespace zeropage::planner {

/// All tensors of a .safetensors file as trainable parameters. Cost: reads the header. Errors: ConfigError for a file
/// that is not as above, IoError.
Model read_safetensors(const std::filesystem::path& path);

/// The same for the files of a *.safetensors.index.json.
Model read_safetensors_index(const std::filesystem::path& path);

}  // namespace zeropage::planner
