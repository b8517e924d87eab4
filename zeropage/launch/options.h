/// \file
/// What the user asked the launcher to do.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace CLI {
class App;
}

namespace zeropage::launch {

struct Options {
  std::optional<int> num_ranks;  ///< absent: one per visible GPU, one where there is none
  std::string master_addr = "127.0.0.1";
  int master_port = 29500;
  bool module = false;         ///< the script is a module's name (python -m)
  bool no_python = false;      ///< the script is a program of its own
  bool no_local_rank = false;  ///< do not pass --local_rank=N
  bool bind_cores = false;     ///< --bind_cores_to_rank, or a core list is given
  std::string core_list;       ///< "0,2-5"; empty: every core this process may use, one thread of each
  bool quiet = false;
  std::string script;
  std::vector<std::string> script_args;  ///< byte for byte as given
};

/// Teaches `app` the launcher's options, to be written into `options` when it parses. Everything after the first word
/// that is no option belongs to the script.
void add_launch_options(CLI::App& app, Options& options);

/// After parsing: takes the script and its arguments, and checks what belongs together. Errors: ConfigError for an
/// unknown option, one that is not built yet, a missing script, or options that exclude each other.
void finish_launch_options(const CLI::App& app, Options& options);

}  // namespace zeropage::launch
