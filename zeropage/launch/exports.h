/// \file
/// The variables of this host that ranks on other hosts get: those whose names begin with a known prefix, PYTHONPATH,
/// and the lines of the environment files.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace zeropage::launch {

using Variables = std::vector<std::pair<std::string, std::string>>;

/// The lines NAME=VALUE of an environment file. Blank lines and those that begin with '#' are skipped; a value is
/// everything up to the end of the line. Errors: ConfigError "path:line: ..." for anything else (values are never
/// shown).
Variables parse_environment_file(std::string_view text, const std::string& path);

/// The variables of `environment` (NAME=VALUE) that begin with MLFLOW, PYTHON, MV2, UCX, NCCL or are the experiment
/// service's; PYTHONPATH has `folder` in front.
Variables exported_variables(const std::vector<std::string>& environment, const std::string& folder);

/// Those of the files $HOME/.deepspeed_env and ./.deepspeed_env (another name: DS_ENV_FILE), later ones replace earlier
/// ones. Errors: ConfigError, see above; IoError when a file exists but cannot be read.
Variables environment_files();

/// Adds `more` to `base`. Values of `more` replace those of the same name.
void merge_variables(Variables& base, const Variables& more);

/// The names, with `separator` between them.
std::string names_of(const Variables& variables, std::string_view separator);

}  // namespace zeropage::launch
