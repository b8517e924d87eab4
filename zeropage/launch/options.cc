#include "zeropage/launch/options.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <fstream>

#include "zeropage/base/error.h"
#include "zeropage/base/suggest.h"

namespace zeropage::launch {
namespace {

/// An option of the reference launcher that is known and not built; `harmless` values change nothing and pass.
struct Unbuilt {
  const char* names;
  const char* about;
  bool takes_value = true;
  std::vector<std::string> harmless = {};
};

const std::vector<Unbuilt>& unbuilt_options() {
  static const std::vector<Unbuilt> options = {
      {"-H,--hostfile", "more than one host"},
      {"-i,--include", "choosing hosts and devices (CUDA_VISIBLE_DEVICES chooses devices here)"},
      {"-e,--exclude", "choosing hosts and devices (CUDA_VISIBLE_DEVICES chooses devices here)"},
      {"--num_nodes", "more than one host", true, {"1", "-1"}},
      {"--min_elastic_nodes", "elastic training", true, {"-1"}},
      {"--max_elastic_nodes", "elastic training", true, {"-1"}},
      {"--node_rank", "more than one host", true, {"-1"}},
      {"--launcher", "more than one host"},
      {"--launcher_args", "more than one host"},
      {"--no_ssh", "more than one host", false},
      {"--no_ssh_check", "more than one host", false},
      {"--ssh_port", "more than one host"},
      {"--force_multi", "more than one host", false},
      {"--venv_script", "more than one host"},
      {"--save_pid", "a file of process ids", false},
      {"--enable_each_rank_log", "one log file per rank (the output is prefixed by rank: filter it)", true, {"None"}},
      {"--autotuning", "autotuning"},
      {"--elastic_training", "elastic training", false},
      {"--log_level", "levels of the launcher's own lines (--quiet silences them)", true, {"info"}},
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

/// Compiled programs start with these bytes; nobody means to run one with python.
bool is_compiled(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string start(4, '\0');
  return file.read(start.data(), 4) && start == "\177ELF";
}

}  // namespace

void add_launch_options(CLI::App& app, Options& options) {
  app.prefix_command();
  app.add_option(
         "--num_gpus,--num_accelerators", options.num_ranks,
         "Ranks to start: one per GPU, or as many CPU ranks where there is no GPU. Default (and -1): every GPU of "
         "CUDA_VISIBLE_DEVICES; 1 without GPUs")
      ->type_name("N");
  app.add_option("--master_port", options.master_port,
                 "Port at which the ranks meet; when it is taken a free one is used and a line says so")
      ->check(CLI::Range(1, 65535))
      ->capture_default_str()
      ->type_name("PORT");
  app.add_option("--master_addr", options.master_addr, "Address at which the ranks meet")
      ->capture_default_str()
      ->type_name("ADDR");
  app.add_flag("--module", options.module, "SCRIPT is a Python module: run it as python -m");
  app.add_flag("--no_python", options.no_python, "SCRIPT is a program: run it without python");
  app.add_flag("--no_local_rank", options.no_local_rank,
               "Do not pass --local_rank=N to the script (LOCAL_RANK is in its environment either way)");
  app.add_flag("--bind_cores_to_rank", options.bind_cores, "Give every rank its own equal share of the cores");
  app.add_option("--bind_core_list", options.core_list, "The cores to share out, such as 0,2-5; implies binding")
      ->type_name("LIST");
  app.add_flag("-q,--quiet", options.quiet, "Leave out the launcher's own lines, except errors");
  for (const Unbuilt& unbuilt : unbuilt_options()) {
    CLI::Option* option = unbuilt.takes_value ? app.add_option(unbuilt.names) : app.add_flag(unbuilt.names);
    option->group("");
  }
}

void finish_launch_options(const CLI::App& app, Options& options) {
  check_unbuilt(app);
  const std::vector<std::string> words = app.remaining();
  if (words.empty()) throw ConfigError("no script was given; say for example: zeropage --num_gpus=2 train.py");
  if (words.front().size() > 1 && words.front().front() == '-') throw_unknown_option(app, words.front());
  options.script = words.front();
  options.script_args.assign(words.begin() + 1, words.end());
  if (options.module && options.no_python) {
    throw ConfigError("--module runs the script with python -m and --no_python without python; give one of them");
  }
  if (!options.module && is_compiled(options.script)) options.no_python = true;
  if (options.num_ranks == -1) options.num_ranks.reset();
  if (options.num_ranks && *options.num_ranks < 1) {
    throw ConfigError(fmt::format("--num_gpus {}: expected 1 or more ranks (-1: one per GPU)", *options.num_ranks));
  }
  options.bind_cores = options.bind_cores || !options.core_list.empty();
}

}  // namespace zeropage::launch
