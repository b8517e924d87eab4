/// \file
/// A transformer's `config.json`, as model hubs have it, to a Model. Parameters are counted as the families' published
/// code makes them.
#pragma once

#include <filesystem>
#include <string>

#include "zeropage/planner/model.h"

namespace zeropage::planner {

/// `text`: the document; `name`: what the plan calls the model; `origin`: for messages. Families by `model_type`:
/// llama, mistral, mixtral, phi3, qwen2, qwen3, qwen3_moe, gpt2, gpt_neox. Errors: ConfigError for another family, a
/// missing key, or a value out of range.
Model parse_model_config(const std::string& text, const std::string& name, const std::string& origin);

/// The same for a file. Errors: also IoError.
Model read_model_config(const std::filesystem::path& path);

}  // namespace zeropage::planner
