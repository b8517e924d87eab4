#include "zeropage/launch/options.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>
#include <fstream>

#include "zeropage/base/error.h"
#include "zeropage/base/suggest.h"

namespace zeropage::launch {
namespace {

/// An option of DeepSpeed's launcher that is known but not built. `harmless` values have no effect and are accepted.
struct Unbuilt {
  const char* names;
  const char* about;
  bool takes_value = true;
  std::vector<std::string> harmless = {};
};

const std::vector<Unbuilt>& unbuilt_options() {
  static const std::vector<Unbuilt> options = {
      {"--min_elastic_nodes", "elastic training", true, {"-1"}},
      {"--max_elastic_nodes", "elastic training", true, {"-1"}},
      {"--elastic_training", "elastic training", false},
      {"--autotuning", "autotuning"},
  };
  return options;
}

std::string longest_name(const CLI::Option& option) { return option.get_name(false, false); }

void check_unbuilt(const CLI::App& app) {
  for (const Unbuilt& unbuilt : unbuilt_options()) {
    const std::string names = unbuilt.names;
    const std::string name = names.substr(names.find("--"));
    const CLI::Option* option = app.get_option(name);
    if (option->count() == 0) continue;
    const auto& harmless = unbuilt.harmless;
    const auto given = option->results();
    if (std::all_of(given.begin(), given.end(),
                    [&](const auto& v) { return std::find(harmless.begin(), harmless.end(), v) != harmless.end(); })) {
      continue;
    }
    throw ConfigError(fmt::format("{}: {} is known but not built yet; leave the option out", name, unbuilt.about));
  }
}

[[noreturn]] void throw_unknown_option(const CLI::App& app, const std::string& given) {
  std::vector<std::string> known;
  for (const CLI::Option* option : app.get_options()) known.push_back(longest_name(*option));
  const std::string near = nearest(given.substr(0, given.find('=')), known);
  throw ConfigError(fmt::format(
      "{}: the launcher has no such option; {}options of the script go after the script's name (see zeropage --help)",
      given, near.empty() ? "" : fmt::format("did you mean {}? ", near)));
}

/// Whether the file is a compiled program, by its first bytes. Such a program is never run with python.
bool is_compiled(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) return false;  // reading from a pipe would consume its bytes
  std::ifstream file(path, std::ios::binary);
  std::string start(4, '\0');
  return file.read(start.data(), 4) && start == "\177ELF";
}

void add_host_options(CLI::App& app, LaunchOptions& options) {
  app.add_option("-H,--hostfile", options.hostfile, "File with a line \"HOST slots=N\" per host; without it this host")
      ->capture_default_str()
      ->type_name("FILE");
  app.add_option("-i,--include", options.include, "Hosts and slots to use: worker-0@worker-1:0,2")->type_name("FILTER");
  app.add_option("-e,--exclude", options.exclude, "Hosts and slots not to use")->type_name("FILTER");
  app.add_option("--num_nodes", options.num_nodes, "Use the first N hosts. Default (and -1): all")->type_name("N");
  app.add_option("--launcher", options.launcher,
                 "The program that starts processes on the hosts: ssh, pdsh, openmpi, mpich, impi, slurm. Default: "
                 "ssh; srun in a Slurm allocation")
      ->check(CLI::IsMember({"ssh", "pdsh", "openmpi", "mpich", "impi", "slurm", "mvapich"}))
      ->type_name("NAME");
  app.add_option("--launcher_args", options.launcher_args,
                 "More arguments for this program, as one argument quoted as for a shell")
      ->type_name("WORDS");
  app.add_option("--ssh_port", options.ssh_port, "Port of the hosts' sshd")
      ->check(CLI::Range(1, 65535))
      ->type_name("PORT");
  app.add_option("--venv_script", options.venv_script,
                 "Script to source on every host; its python and zeropage are used")
      ->type_name("FILE");
  app.add_flag("--no_ssh_check", options.no_ssh_check, "Start even if the hosts' versions differ");
  app.add_flag("--force_multi", options.force_multi, "Reach the host by ssh even if it is only this one");
  app.add_flag("--no_ssh", options.no_ssh, "Run only this host's part, with --node_rank and --master_addr");
  app.add_option("--node_rank", options.node_rank, "Number of this host among the hosts, from 0, with --no_ssh")
      ->type_name("N");
  app.add_option("--master_addr", options.master_addr,
                 "Address at which the ranks meet. Default: the first host's, 127.0.0.1 on one host")
      ->type_name("ADDR");
  app.add_option("--master_port", options.master_port,
                 "Port at which the ranks meet; if it is taken, a free port is used and printed")
      ->check(CLI::Range(1, 65535))
      ->capture_default_str()
      ->type_name("PORT");
  app.add_option("--world_info", options.world_info)->group("");
}

void add_rank_options(CLI::App& app, LaunchOptions& options) {
  app.add_option("--num_gpus,--num_accelerators", options.num_ranks,
                 "Ranks to start on each host: one per GPU, or as many CPU ranks where there is no GPU. Default (and "
                 "-1): every GPU of CUDA_VISIBLE_DEVICES, or the hostfile's slots; 1 without GPUs")
      ->type_name("N");
  app.add_flag("--module", options.module, "SCRIPT is a Python module: run it as python -m");
  app.add_flag(
      "--no_python", options.no_python,
      "SCRIPT is a program: run it without python (a compiled program is recognised, and gets no --local_rank=N)");
  app.add_flag("--no_local_rank", options.no_local_rank,
               "Do not pass --local_rank=N to the script (LOCAL_RANK is in its environment in both cases)");
  app.add_flag("--bind_cores_to_rank", options.bind_cores, "Give every rank its own equal share of the cores");
  app.add_option("--bind_core_list", options.core_list,
                 "The cores to divide over the ranks, such as 0,2-5; implies --bind_cores_to_rank")
      ->type_name("LIST");
  app.add_option("--log_dir,--enable_each_rank_log", options.log_dir, "Folder for files with the output of each rank")
      ->type_name("DIR");
  app.add_option("--max_restarts", options.max_restarts,
                 "Start the job again, at most N times, after a rank or a host was lost (exit code 75)")
      ->check(CLI::Range(0, 1'000'000))
      ->type_name("N");
  app.add_flag("--save_pid", options.save_pid, "Write this launcher's process id to TMPDIR/ID.zeropage while it runs");
  app.add_flag("--dry_run", options.dry_run, "Print the processes and their hosts, and start nothing");
  app.add_flag("-q,--quiet", options.quiet, "Leave out the launcher's own lines, except errors");
  app.add_option_function<std::string>(
         "--log_level", [&options](const std::string& level) { options.quiet |= level != "info" && level != "debug"; },
         "warning and above are the same as --quiet; debug, info (the default), warning, error, critical")
      ->check(CLI::IsMember({"debug", "info", "warning", "error", "critical"}))
      ->type_name("LEVEL");
}

}  // namespace

void add_launch_options(CLI::App& app, LaunchOptions& options) {
  app.prefix_command();
  add_host_options(app, options);
  add_rank_options(app, options);
  for (const Unbuilt& unbuilt : unbuilt_options()) {
    CLI::Option* option = unbuilt.takes_value ? app.add_option(unbuilt.names) : app.add_flag(unbuilt.names);
    option->group("");
  }
}

void finish_launch_options(const CLI::App& app, LaunchOptions& options) {
  check_unbuilt(app);
  const std::vector<std::string> words = app.remaining();
  if (words.empty()) throw ConfigError("no script was given; write for example: zeropage --num_gpus=2 train.py");
  if (words.front().size() > 1 && words.front().front() == '-') throw_unknown_option(app, words.front());
  options.script = words.front();
  options.script_args.assign(words.begin() + 1, words.end());
  if (options.module && options.no_python) {
    throw ConfigError("--module runs the script with python -m and --no_python without python; give one of them");
  }
  // A compiled program gets only the user's arguments. --no_python requests DeepSpeed's command line, which includes
  // --local_rank=N.
  if (!options.module && !options.no_python && is_compiled(options.script)) {
    options.no_python = options.no_local_rank = true;
  }
  if (options.num_ranks == -1) options.num_ranks.reset();
  if (options.num_ranks && *options.num_ranks < 1) {
    throw ConfigError(fmt::format("--num_gpus {}: expected 1 or more ranks (-1: one per GPU)", *options.num_ranks));
  }
  if (options.num_nodes == -1) options.num_nodes.reset();
  if (options.num_nodes && *options.num_nodes < 1) {
    throw ConfigError(fmt::format("--num_nodes {}: expected 1 or more hosts (-1: all)", *options.num_nodes));
  }
  if (options.launcher == "mvapich") {
    throw ConfigError("--launcher mvapich: known but not built; use ssh, pdsh, openmpi, mpich, impi or slurm");
  }
  if (options.log_dir == "None") options.log_dir.clear();
  options.bind_cores = options.bind_cores || !options.core_list.empty();
}

}  // namespace zeropage::launch
