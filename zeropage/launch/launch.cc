#include "zeropage/launch/launch.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include "zeropage/base/descriptor.h"
#include "zeropage/base/error.h"
#include "zeropage/base/exit_code.h"
#include "zeropage/comm/meeting_socket.h"
#include "zeropage/comm/world.h"
#include "zeropage/launch/cores.h"
#include "zeropage/launch/dry_run.h"
#include "zeropage/launch/fleet.h"
#include "zeropage/launch/guard.h"
#include "zeropage/launch/host.h"
#include "zeropage/launch/job.h"
#include "zeropage/launch/system_call.h"

namespace zeropage::launch {
namespace {

constexpr const char* kGiveAddress = "; set --master_addr to an address of rank 0's host that this one reaches";
constexpr std::chrono::milliseconds kResolverPatience{10'000};

std::string this_host_name() {
  char name[256] = "";
  if (::gethostname(name, sizeof(name) - 1) != 0) throw_errno("cannot read this host's name", "check the container");
  return name;
}

Host look_at_host(const LaunchOptions& options, const Job& job, const std::string& argv0) {
  Host host;
  host.gpus = visible_gpus("/dev", job.ignores_visible ? nullptr : std::getenv("CUDA_VISIBLE_DEVICES"));
  host.cores = allowed_cores();
  host.units = one_per_unit(host.cores, "/sys/devices/system/cpu");
  host.omp_threads_set = std::getenv("OMP_NUM_THREADS") != nullptr;
  if (!options.no_python) host.python = find_python(argv0);
  host.token = make_job_token();
  return host;
}

const char* variable(const char* name) { return std::getenv(name); }

/// The rank for which mpirun or srun has started this process.
HostPart place_of_task(const LaunchOptions& options, const Task& task) {
  HostPart place{"",        {0},       task.rank,      task.local_rank,     task.local_size,
                 task.size, task.node, task.num_nodes, options.master_addr, options.master_port};
  std::string source = "from --master_addr";
  if (variable("MASTER_ADDR") && variable("MASTER_PORT")) {
    const comm::Meeting given =
        comm::meeting_from_environment(&variable, {task.rank, task.local_rank, task.size, task.local_size});
    place.master_port = given.port;
    if (place.master_addr.empty()) place.master_addr = given.address, source = "from MASTER_ADDR";
  }
  if (task.local_size == task.size) {
    if (place.master_addr.empty()) place.master_addr = "127.0.0.1";
    return place;
  }
  if (place.master_addr.empty()) place.master_addr = task.first_host, source = "the first host of " + task.starter;
  if (place.master_addr.empty()) {
    throw ConfigError(
        fmt::format("{} does not give the host of rank 0; give its address with --master_addr", task.starter));
  }
  comm::resolve_host(place.master_addr, source + kGiveAddress, kResolverPatience);
  return place;
}

/// This process's part of the job. `claim` keeps the port from other launchers.
HostPart choose_place(const LaunchOptions& options, const Job& job, Host& host, Port& claim) {
  if (job.way == Way::kTask) {
    host.token = comm::token_from_environment(&variable);  // a token of its own would separate this rank from its peers
    host.gpus.clear();                                     // every rank sees all GPUs; LOCAL_RANK selects one
    return place_of_task(options, *job.task);
  }
  if (job.way == Way::kHere) {
    claim = claim_port(options.master_port);
    host.port = claim.number;
    HostPart place = place_alone(options, host);
    if (job.hosts.empty()) return place;
    place.slots = job.hosts[0].slots;
    place.local_size = place.world_size = static_cast<int>(place.slots.size());
    return place;
  }
  HostPart place{"",
                 job.hosts[options.node_rank].slots,
                 0,
                 0,
                 0,
                 0,
                 options.node_rank,
                 static_cast<int>(job.hosts.size()),
                 options.master_addr.empty() ? "127.0.0.1" : options.master_addr,
                 options.master_port};
  place.name = job.hosts[options.node_rank].name;
  place.local_size = static_cast<int>(place.slots.size());
  for (int node = 0; node < place.num_nodes; ++node) {
    const int slots = static_cast<int>(job.hosts[node].slots.size());
    if (node < options.node_rank) place.first_rank += slots;
    place.world_size += slots;
  }
  if (!options.master_addr.empty()) {
    comm::resolve_host(options.master_addr, fmt::format("from --master_addr{}", kGiveAddress), kResolverPatience);
  }
  return place;
}

RunnerContext look_around(const Job& job, const std::string& argv0) {
  RunnerContext context;
  context.hosts = job.hosts;
  context.folder = std::filesystem::current_path();
  // The link in a virtual environment's bin counts, not the file it points at.
  context.command = std::filesystem::absolute(find_program(argv0)).lexically_normal();
  std::vector<std::string> environment;
  for (char** entry = environ; *entry; ++entry) environment.emplace_back(*entry);
  context.variables = exported_variables(environment, context.folder);
  const Variables from_files = environment_files();
  context.has_secrets = !from_files.empty();
  merge_variables(context.variables, from_files);
  context.token = make_job_token();
  return context;
}

/// A file with the process id, which the destructor removes.
class PidFile {
 public:
  explicit PidFile(bool wanted) {
    if (!wanted) return;
    const char* folder = std::getenv("TMPDIR");
    path_ = fmt::format("{}/{}.zeropage", folder && *folder ? folder : "/tmp", ::getpid());
    ::unlink(path_.c_str());  // of an earlier process with this id
    const Descriptor file(::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
    const std::string text = fmt::format("{}\n", ::getpid());
    if (!file || ::write(file.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size())) {
      throw_errno("cannot write the process id to " + path_, "set TMPDIR to a folder that can be written");
    }
  }
  PidFile(const PidFile&) = delete;
  PidFile& operator=(const PidFile&) = delete;
  ~PidFile() {
    if (!path_.empty()) ::unlink(path_.c_str());
  }

 private:
  std::string path_;
};

SuperviseOptions supervise_options(const LaunchOptions& options, const GuardContext& guard) {
  return {guard.control_fd, guard.rank_mask, guard.front_group, options.quiet, options.log_dir};
}

int supervise_plan(JobPlan plan, const SuperviseOptions& options) {
  std::vector<HostJob> jobs;
  jobs.push_back({nullptr, std::move(plan)});
  return supervise(std::move(jobs), options);
}

/// Starts the job once, or describes it. `attempt`: the number of earlier starts.
int start_job(const LaunchOptions& options, Job job, const std::string& argv0, Guard* guard, int attempt) {
  const std::pair<std::string, std::string> count{"ZEROPAGE_RESTART_COUNT", std::to_string(attempt)};
  if (job.way == Way::kSsh || job.way == Way::kRunner) {
    RunnerContext context = look_around(job, argv0);
    const bool own_python = options.no_python || !options.venv_script.empty();
    if (job.way == Way::kSsh) {
      const std::string python = own_python ? "" : std::string(std::filesystem::absolute(find_python(argv0)));
      if (!guard) return std::fputs(describe_fleet(options, context, python).c_str(), stdout), 0;
      merge_variables(context.variables, {count});
      return guard->run(
          [&](const GuardContext& g) { return run_fleet(options, context, python, supervise_options(options, g)); });
    }
    RunnerCommand command = runner_command(options, job.launcher, context);
    if (!guard) return std::fputs(describe_command(command).c_str(), stdout), 0;
    JobPlan plan;
    plan.ranks.push_back({0, "", std::move(command.argv), std::move(command.env), {}});
    return guard->run([&](const GuardContext& g) { return supervise_plan(plan, supervise_options(options, g)); });
  }
  check_script(options.script, options.module, options.no_python);
  Host host = look_at_host(options, job, argv0);
  Port claim;
  JobPlan plan = plan_job(options, host, choose_place(options, job, host, claim));
  plan.notices.insert(plan.notices.begin(), job.notices.begin(), job.notices.end());
  if (!guard) return std::fputs(describe_plan(plan).c_str(), stdout), 0;
  for (RankPlan& rank : plan.ranks) rank.env.push_back(count);
  return guard->run([&](const GuardContext& g) { return supervise_plan(plan, supervise_options(options, g)); });
}

}  // namespace

int launch(const LaunchOptions& options, const std::string& argv0) {
  open_standard_streams();
  const Surroundings here{[](const char* name) { return static_cast<const char*>(std::getenv(name)); },
                          this_host_name(), static_cast<int>(visible_gpus("/dev", nullptr).size())};
  const Job job = choose_job(options, here);
  if (options.dry_run) return start_job(options, job, argv0, nullptr, 0);
  const PidFile pid_file(options.save_pid);
  Guard guard;
  for (int attempt = 0;; ++attempt) {
    const int code = start_job(options, job, argv0, &guard, attempt);
    if (code != kRetryExitCode || attempt >= options.max_restarts || guard.was_signalled()) return code;
    std::fprintf(stderr, "zeropage: starting the job again (%d of %d)\n", attempt + 1, options.max_restarts);
  }
}

}  // namespace zeropage::launch
