#include "zeropage/launch/dry_run.h"

#include <fmt/format.h>

#include "zeropage/launch/fleet.h"
#include "zeropage/launch/quote.h"

namespace zeropage::launch {
std::string describe_plan(const JobPlan& plan) {
  std::string text;
  for (const RankPlan& rank : plan.ranks) {
    text += rank.host.empty() ? fmt::format("[rank {}]", rank.rank) : fmt::format("[{}:{}]", rank.host, rank.rank);
    for (const auto& [name, value] : rank.env) {
      text += name == "ZEROPAGE_JOB_TOKEN" ? " ZEROPAGE_JOB_TOKEN=<drawn>"
                                           : fmt::format(" {}={}", name, shell_quote(value));
    }
    text += " " + shell_join(rank.argv) + "\n";
  }
  return text;
}

std::string describe_fleet(const LaunchOptions& options, const RunnerContext& context, const std::string& python) {
  RunnerContext shown = context;
  shown.variables.clear();
  std::vector<HostReport> reports(context.hosts.size());
  for (HostReport& report : reports) {
    report.address = fmt::format("<address of {}>", context.hosts.front().name);
    report.network = "lo";
    report.host.omp_threads_set = true;  // the number of cores of that host is unknown here
    report.host.python = python.empty() ? "<python of the environment>" : python;
    report.host.port = options.master_port;
  }
  LaunchOptions unbound = options;
  unbound.bind_cores = false;
  const std::vector<JobPlan> plans = plan_fleet(unbound, shown, reports);
  std::string text;
  for (std::size_t i = 0; i < plans.size(); ++i) {
    text += shell_join(ssh_argv(options, context.hosts[i].name, context.command)) + "\n";
    text += describe_plan(plans[i]);
  }
  text += "in " + shell_quote(context.folder) + ", each rank also with " + names_of(context.variables, " ") + "\n";
  return text;
}

std::string describe_command(const RunnerCommand& command) {
  return shell_join(command.argv) + "\nstarted with " + names_of(command.env, " ") + "\n";
}

}  // namespace zeropage::launch
