#include "zeropage/launch/fleet.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>

#include "zeropage/base/error.h"
#include "zeropage/launch/remote_host.h"

namespace zeropage::launch {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::seconds kConnectPatience{30};
constexpr std::chrono::milliseconds kPollPeriod{50};  // ssh's end is looked for so often while hosts are reached

using Remotes = std::vector<std::unique_ptr<RemoteHost>>;

bool has_answered(const std::unique_ptr<RemoteHost>& host) {
  return host->report() || !host->failure().empty() || host->is_gone();
}

/// Waits for all answers or for a signal of the user. Returns the signal, or 0. The death of the front process counts
/// as SIGKILL.
int await_answers(const Remotes& remotes, int control_fd) {
  const Time end = Clock::now() + kConnectPatience;
  while (!std::all_of(remotes.begin(), remotes.end(), has_answered) && Clock::now() < end) {
    std::vector<pollfd> fds = {{control_fd, POLLIN, 0}};
    std::vector<std::size_t> firsts;
    for (const auto& host : remotes) {
      firsts.push_back(fds.size());
      host->add_fds(fds, true);
    }
    if (::poll(fds.data(), fds.size(), kPollPeriod.count()) < 0) continue;
    unsigned char byte = 0;
    if (fds[0].revents) return ::read(control_fd, &byte, 1) == 1 ? byte & ~kAlreadyDelivered : SIGKILL;
    for (std::size_t i = 0; i < remotes.size(); ++i) {
      remotes[i]->serve(fds.data() + firsts[i]);
      remotes[i]->collect();
      remotes[i]->advance(Clock::now());
    }
  }
  return 0;
}

/// Throws if any host has a problem.
void check_answers(const Remotes& remotes, bool any_version) {
  std::vector<std::string> names, lines;
  std::vector<HostReport> reports;
  bool unreachable = false;
  for (const auto& host : remotes) {
    if (!host->report()) {
      unreachable = true;
      lines.push_back(fmt::format(
          "{}: {}", host->name(),
          host->failure().empty() ? fmt::format("no answer within {} s", kConnectPatience.count()) : host->failure()));
      continue;
    }
    for (const std::string& error : host->report()->errors) lines.push_back(fmt::format("{}: {}", host->name(), error));
    names.push_back(host->name());
    reports.push_back(*host->report());
  }
  for (std::string& line : compare_reports(names, reports, any_version)) lines.push_back(std::move(line));
  if (lines.empty()) return;
  const std::string text = fmt::format("the job cannot start:\n  {}", fmt::join(lines, "\n  "));
  if (unreachable)
    throw IoError(text + "\nevery host must accept ssh from this one without a password: try ssh HOST true");
  throw ConfigError(text);
}

Question question_for(const LaunchOptions& options, const RunnerContext& context, const std::string& python,
                      bool is_first) {
  Question question;
  question.folder = context.folder;
  question.script = options.script;
  question.python = python;
  question.module = options.module;
  question.no_python = options.no_python;
  question.port = is_first ? options.master_port : 0;
  return question;
}

}  // namespace

std::vector<std::string> compare_reports(const std::vector<std::string>& names, const std::vector<HostReport>& reports,
                                         bool any_version) {
  std::vector<std::string> lines;
  for (std::size_t i = 1; i < reports.size() && !any_version; ++i) {
    const auto compare = [&](const char* what, const std::string& first, const std::string& other) {
      if (first == other) return;
      lines.push_back(
          fmt::format("{}: {} {}, but {} has {}; install the same on all hosts (--no_ssh_check starts anyway)",
                      names[i], what, other, names[0], first));
    };
    compare("zeropage", reports[0].version, reports[i].version);
    if (!reports[0].torch.empty() && !reports[i].torch.empty()) compare("torch", reports[0].torch, reports[i].torch);
  }
  return lines;
}

std::vector<JobPlan> plan_fleet(const LaunchOptions& options, const RunnerContext& context,
                                const std::vector<HostReport>& reports) {
  HostPart place;
  for (const HostSlots& host : context.hosts) place.world_size += static_cast<int>(host.slots.size());
  place.num_nodes = static_cast<int>(context.hosts.size());
  place.master_addr = options.master_addr.empty() ? reports.front().address : options.master_addr;
  place.master_port = reports.front().host.port;
  std::vector<JobPlan> plans;
  for (std::size_t i = 0; i < reports.size(); ++i) {
    place.name = context.hosts[i].name;
    place.slots = context.hosts[i].slots;
    place.local_size = static_cast<int>(place.slots.size());
    place.node = static_cast<int>(i);
    Host host = reports[i].host;
    host.token = context.token;
    plans.push_back(plan_job(options, host, place));
    for (RankPlan& rank : plans.back().ranks) {
      // Gloo listens at the address of the host's name, which is often the loopback interface.
      Variables env = {{"GLOO_SOCKET_IFNAME", reports[i].network}};
      if (reports[i].network == "lo") env.clear();
      merge_variables(env, context.variables);
      merge_variables(env, rank.env);
      rank.env = std::move(env);
    }
    place.first_rank += place.local_size;
  }
  return plans;
}

int run_fleet(const LaunchOptions& options, const RunnerContext& context, const std::string& python,
              const SuperviseOptions& supervise_options) {
  SpawnContext ssh_context;
  ssh_context.mask = supervise_options.rank_mask;
  Remotes remotes;
  for (const HostSlots& host : context.hosts) {
    remotes.push_back(
        std::make_unique<RemoteHost>(host.name, ssh_argv(options, host.name, context.command), ssh_context));
    remotes.back()->ask(question_for(options, context, python, remotes.size() == 1));
  }
  if (const int signal = await_answers(remotes, supervise_options.control_fd)) return 128 + signal;
  check_answers(remotes, options.no_ssh_check);
  std::vector<HostReport> reports;
  for (const auto& remote : remotes) reports.push_back(*remote->report());
  std::vector<JobPlan> plans = plan_fleet(options, context, reports);
  std::vector<HostJob> jobs;
  for (std::size_t i = 0; i < remotes.size(); ++i) jobs.push_back({std::move(remotes[i]), std::move(plans[i])});
  return supervise(std::move(jobs), supervise_options);
}

}  // namespace zeropage::launch
