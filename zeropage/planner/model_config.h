/// \file
/// Converts the `config.json` of a transformer, as on model hubs, to a Model. Parameters are counted as in the
/// published code of each family.
#pragma once

#include <filesystem>
#include <string>

#include "zeropage/planner/model.h"

namespace zeropage::planner {

/// `text`: the document; `name`: the model's name in the plan; `origin`: for messages. Families by `model_type`:
/// llama, mistral, mixtral, phi3, qwen2, qwen3, qwen3_moe, gpt2, gpt_neox. Errors: ConfigError for another family, a
/// missing key, or a value out of range.
Model parse_model_config(const std::string& text, const std::string& name, const std::string& origin);

/// The same for a file. Errors: also IoError.
Model read_model_config(const std::filesystem::path& path);

}  // namespace zeropage::planner
