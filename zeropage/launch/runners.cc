#include "zeropage/launch/runners.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "zeropage/base/error.h"
#include "zeropage/launch/quote.h"

namespace zeropage::launch {
namespace {

using Words = std::vector<std::string>;

void append(Words& words, const Words& more) { words.insert(words.end(), more.begin(), more.end()); }

int total_slots(const RunnerContext& context) {
  int total = 0;
  for (const HostSlots& host : context.hosts) total += static_cast<int>(host.slots.size());
  return total;
}

/// A list of "host:slots", or only of the hosts.
std::string host_list(const RunnerContext& context, bool with_slots) {
  Words items;
  for (const HostSlots& host : context.hosts) {
    items.push_back(with_slots ? fmt::format("{}:{}", host.name, host.slots.size()) : bare_host(host.name));
  }
  return fmt::format("{}", fmt::join(items, ","));
}

/// Refuses chosen slots for programs that only have a number of slots.
void check_whole_slots(const RunnerContext& context, const std::string& launcher) {
  for (const HostSlots& host : context.hosts) {
    for (std::size_t i = 0; i < host.slots.size(); ++i) {
      if (host.slots[i] == static_cast<int>(i)) continue;
      throw ConfigError(
          fmt::format("--launcher {} cannot choose slots, only how many: host {} would use {}; use --launcher "
                      "ssh, or CUDA_VISIBLE_DEVICES on the hosts",
                      launcher, host.name, fmt::join(host.slots, ",")));
    }
  }
}

int equal_slots(const RunnerContext& context, const std::string& launcher) {
  const std::size_t slots = context.hosts.front().slots.size();
  for (const HostSlots& host : context.hosts) {
    if (host.slots.size() == slots) continue;
    throw ConfigError(fmt::format(
        "--launcher {} needs the same number of slots on every host: {} has {} and {} has {}; use --num_gpus, "
        "or --launcher ssh",
        launcher, context.hosts.front().name, slots, host.name, host.slots.size()));
  }
  return static_cast<int>(slots);
}

/// The ranks' shared variables, in the order in which they are named.
Variables rank_variables(const LaunchOptions& options, const RunnerContext& context) {
  Variables variables = context.variables;
  merge_variables(variables, {{"MASTER_ADDR", options.master_addr.empty() ? bare_host(context.hosts.front().name)
                                                                          : options.master_addr},
                              {"MASTER_PORT", std::to_string(options.master_port)},
                              {"ZEROPAGE_JOB_TOKEN", context.token}});
  return variables;
}

/// The command that mpirun and srun start: zeropage once per rank. It gets its rank from their variables.
Words rank_words(const LaunchOptions& options, const RunnerContext& context) {
  Words words = {context.command};
  append(words, script_words(options));
  if (options.venv_script.empty()) return words;
  words.front() = "zeropage";
  return {"/bin/sh", "-c", fmt::format(". {} && exec {}", shell_quote(options.venv_script), shell_join(words))};
}

RunnerCommand pdsh_command(const LaunchOptions& options, const RunnerContext& context) {
  if (context.has_secrets) {
    throw ConfigError(
        "--launcher pdsh would show the values of the environment file to every user of the hosts (they become part of "
        "its command line); use --launcher ssh, or remove the file");
  }
  Words hosts;
  for (const HostSlots& host : context.hosts)
    hosts.push_back(fmt::format("{}:{}", host.name, fmt::join(host.slots, ",")));
  Words words = {options.venv_script.empty() ? context.command : "zeropage",
                 "--no_ssh",
                 fmt::format("--world_info={}", fmt::join(hosts, "@")),
                 "--master_addr",
                 options.master_addr.empty() ? bare_host(context.hosts.front().name) : options.master_addr,
                 "--master_port",
                 std::to_string(options.master_port)};
  append(words, script_words(options));
  std::string remote = "cd " + shell_quote(context.folder);
  for (const auto& [name, value] : context.variables)
    remote += fmt::format(" && export {}={}", name, shell_quote(value));
  if (!options.venv_script.empty()) remote += " && . " + shell_quote(options.venv_script);
  remote +=
      " && exec " + shell_join({words.front()}) + " --node_rank=%n " + shell_join({words.begin() + 1, words.end()});
  // pdsh replaces %n and similar sequences, so a % is written as %%.
  std::string escaped;
  for (std::size_t i = 0; i < remote.size(); ++i) {
    escaped += remote[i];
    if (remote[i] == '%' && remote.compare(i > 12 ? i - 12 : 0, 14, "--node_rank=%n") != 0) escaped += '%';
  }
  Words argv = {"pdsh", "-S", "-f", "1024", "-w", host_list(context, false)};
  append(argv, split_words(options.launcher_args, "--launcher_args"));
  argv.push_back(escaped);
  Variables env = {{"PDSH_RCMD_TYPE", "ssh"}};
  if (options.ssh_port > 0) env.emplace_back("PDSH_SSH_ARGS_APPEND", fmt::format("-p {}", options.ssh_port));
  return {argv, env};
}

}  // namespace

std::vector<std::string> ssh_argv(const LaunchOptions& options, const std::string& host, const std::string& command) {
  Words argv = {"ssh", "-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10"};
  if (options.ssh_port > 0) append(argv, {"-p", std::to_string(options.ssh_port)});
  append(argv, split_words(options.launcher_args, "--launcher_args"));
  const std::string agent = options.venv_script.empty()
                                ? fmt::format("exec {} agent", shell_quote(command))
                                : fmt::format(". {} && exec zeropage agent", shell_quote(options.venv_script));
  append(argv, {"--", bare_host(host), agent});
  return argv;
}

std::vector<std::string> script_words(const LaunchOptions& options) {
  Words words;
  if (options.module) words.push_back("--module");
  if (options.no_python) words.push_back("--no_python");
  if (options.no_local_rank) words.push_back("--no_local_rank");
  if (options.bind_cores) words.push_back("--bind_cores_to_rank");
  if (!options.core_list.empty()) append(words, {"--bind_core_list", options.core_list});
  if (options.quiet) words.push_back("--quiet");
  words.push_back(options.script);
  append(words, options.script_args);
  return words;
}

RunnerCommand runner_command(const LaunchOptions& options, const std::string& launcher, const RunnerContext& context) {
  if (launcher == "pdsh") return pdsh_command(options, context);
  check_whole_slots(context, launcher);
  RunnerCommand command{{}, rank_variables(options, context)};
  const std::string total = std::to_string(total_slots(context));
  Words& argv = command.argv;
  if (launcher == "openmpi") {
    argv = {"mpirun", "-n", total, "--host", host_list(context, true)};
    for (const auto& variable : command.env) append(argv, {"-x", variable.first});
  } else if (launcher == "mpich") {
    argv = {"mpiexec", "-n", total, "-hosts", host_list(context, true), "-genvlist", names_of(command.env, ",")};
  } else if (launcher == "impi") {
    argv = {"mpirun",
            "-n",
            total,
            "-ppn",
            std::to_string(equal_slots(context, launcher)),
            "-hosts",
            host_list(context, false),
            "-genvlist",
            names_of(command.env, ",")};
  } else {
    argv = {"srun",
            fmt::format("--nodes={}", context.hosts.size()),
            fmt::format("--ntasks={}", total),
            fmt::format("--ntasks-per-node={}", equal_slots(context, launcher)),
            fmt::format("--nodelist={}", host_list(context, false)),
            "--kill-on-bad-exit=1",
            "--export=ALL"};
  }
  append(argv, split_words(options.launcher_args, "--launcher_args"));
  append(argv, rank_words(options, context));
  return command;
}

}  // namespace zeropage::launch
