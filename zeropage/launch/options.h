/// \file
/// The options of the launcher.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace CLI {
class App;
}

namespace zeropage::launch {

inline constexpr const char* kDefaultHostfile = "/job/hostfile";

struct LaunchOptions {
  std::string hostfile = kDefaultHostfile;
  std::string include;
  std::string exclude;
  std::optional<int> num_nodes;  ///< absent: all hosts
  std::optional<int> num_ranks;  ///< per host; nullopt: one per visible GPU or slot, or one if there are none
  std::string master_addr;       ///< empty: found out
  int master_port = 29500;
  int node_rank = -1;
  std::string launcher;       ///< empty: ssh, or slurm in its allocation
  std::string launcher_args;  ///< more arguments for the program that starts processes on the hosts
  bool no_ssh = false;
  bool no_ssh_check = false;  ///< do not compare versions
  bool force_multi = false;
  int ssh_port = 0;            ///< 0: ssh's own choice
  std::string venv_script;     ///< sourced on every host
  std::string world_info;      ///< hosts and slots as in --include, from a launcher on another host
  bool module = false;         ///< the script is the name of a module (python -m)
  bool safe_path = false;      ///< do not search modules in the current folder: it is not the user's script
  bool no_python = false;      ///< the script is a program, not a Python file
  bool no_local_rank = false;  ///< do not pass --local_rank=N
  bool bind_cores = false;     ///< --bind_cores_to_rank, or a core list is given
  std::string core_list;       ///< "0,2-5"; empty: every core this process may use, one thread of each
  bool save_pid = false;
  std::string log_dir;
  int max_restarts = 0;
  bool dry_run = false;
  bool quiet = false;
  std::string script;
  std::vector<std::string> script_args;  ///< byte for byte as given
};

/// Adds the launcher's options to `app`, which writes them into `options` when it parses. Everything after the first
/// word that is no option belongs to the script.
void add_launch_options(CLI::App& app, LaunchOptions& options);

/// After parsing: sets the script and its arguments, and checks combinations of options. Errors: ConfigError for an
/// unknown option, one that is not built yet, a missing script, or options that exclude each other.
void finish_launch_options(const CLI::App& app, LaunchOptions& options);

}  // namespace zeropage::launch
