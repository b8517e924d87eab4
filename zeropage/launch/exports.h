/// \file
/// The variables that ranks on other hosts get from here: those whose names begin with a known prefix, PYTHONPATH, and
/// the lines of the environment files.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace zeropage::launch {

using Variables = std::vector<std::pair<std::string, std::string>>;

/// The lines NAME=VALUE of an environment file. Blank lines and those that begin with '#' are skipped; a value is taken
/// as it is, to the end of its line. Errors: ConfigError "path:line: ..." for anything else (values are never shown).
Variables parse_environment_file(std::string_view text, const std::string& path);

/// The variables of `environment` (NAME=VALUE) that begin with MLFLOW, PYTHON, MV2, UCX, NCCL or are the experiment
/// service's; PYTHONPATH has `folder` in front.
Variables exported_variables(const std::vector<std::string>& environment, const std::string& folder);

/// Those of the files $HOME/.deepspeed_env and ./.deepspeed_env (another name: DS_ENV_FILE), later ones winning.
/// Errors: ConfigError, see above; IoError when a file is there and cannot be read.
Variables environment_files();

/// `more` on top of `base`: of two values of one name the later counts.
void merge_variables(Variables& base, const Variables& more);

}  // namespace zeropage::launch
