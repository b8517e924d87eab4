/// \file
/// The command `zeropage`.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <string_view>

#include "zeropage/base/exit_code.h"
#include "zeropage/cli/ckpt_command.h"
#include "zeropage/cli/config_command.h"
#include "zeropage/cli/io_bench_command.h"
#include "zeropage/cli/measure_hardware.h"
#include "zeropage/cli/plan_command.h"
#include "zeropage/cli/python_command.h"
#include "zeropage/launch/agent.h"
#include "zeropage/launch/guard.h"
#include "zeropage/launch/launch.h"
#include "zeropage/launch/options.h"

namespace {

constexpr const char* kAbout =
    R"(Starts a training script on every device of this host, or of many hosts, and supervises it.

  zeropage --num_gpus=2 train.py --my_option 3
      two ranks of train.py; all arguments after the script are the script's
  zeropage --hostfile=hosts train.py
      a rank per slot of every host, reached by ssh (docs/launcher.md)

Every rank finds RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT in its environment (torchrun's names).
With several ranks, their lines are marked [rank N] or [host:N], and OMP_NUM_THREADS is the rank's share of
the cores unless it is set. When a rank fails the others are ended, its error is shown last, and its exit code is returned.
Ctrl-C and SIGTERM end the job; all of its processes end with this command, even after kill -9.)";

/// Runs `list`, after a measurement of the machine if it was requested.
template <typename Command, typename List>
int print_planned(Command& command, zeropage::cli::PlanCommand& plan, const char* argv0, List list) {
  const std::string temporary = zeropage::cli::measure_machine(plan, argv0);
  const std::string text = list(command);
  if (!temporary.empty()) std::filesystem::remove(temporary);
  std::fputs(text.c_str(), stdout);
  return 0;
}

/// CLI11's own usage line cannot show that the script's arguments follow the script.
class LauncherFormatter : public CLI::Formatter {
 public:
  std::string make_usage(const CLI::App* app, std::string name) const override {
    if (app->get_parent()) return CLI::Formatter::make_usage(app, name);
    return "\nUsage: zeropage [options] SCRIPT [arguments of the script...]\n"
           "       zeropage config FILE [--world_size N] [--from deepspeed]\n"
           "       zeropage plan MODEL [--num_gpus N] [--device NAME] ...\n"
           "       zeropage simulate MODEL --device NAME --num_nodes N ...\n"
           "       zeropage ckpt ls|verify|export|diff|import PATH ...\n"
           "       zeropage io-bench PATH... [--write FILE]\n"
           "       zeropage report RUN\n"
           "       zeropage top\n"
           "       zeropage doctor\n";
  }
};

int run(int argc, char** argv) {
  if (argc == 2 && std::string_view(argv[1]) == "agent") return zeropage::launch::run_agent(argv[0]);
  if (zeropage::cli::is_python_command(argc, argv)) zeropage::cli::run_python_command(argv);
  CLI::App app(kAbout, "zeropage");
  app.formatter(std::make_shared<LauncherFormatter>());
  app.set_version_flag("--version", "zeropage " ZEROPAGE_VERSION);
  zeropage::launch::LaunchOptions options;
  zeropage::launch::add_launch_options(app, options);
  zeropage::cli::ConfigCommand config;
  const CLI::App* config_command = zeropage::cli::add_config_command(app, config);
  zeropage::cli::PlanCommand plan;
  const CLI::App* plan_command = zeropage::cli::add_plan_command(app, plan);
  zeropage::cli::SimulateCommand simulate;
  const CLI::App* simulate_command = zeropage::cli::add_simulate_command(app, simulate);
  zeropage::cli::CkptCommand ckpt;
  const CLI::App* ckpt_command = zeropage::cli::add_ckpt_command(app, ckpt);
  zeropage::cli::IoBenchCommand io_bench;
  const CLI::App* io_bench_command = zeropage::cli::add_io_bench_command(app, io_bench);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const int code = app.exit(error);
    return code == 0 ? 0 : zeropage::kConfigExitCode;
  }
  if (config_command->parsed()) {
    const auto outcome = zeropage::cli::run_config_command(config);
    std::fputs(outcome.text.c_str(), stdout);
    return outcome.code;
  }
  if (plan_command->parsed()) return print_planned(plan, plan, argv[0], zeropage::cli::plan_listing);
  if (simulate_command->parsed()) {
    return print_planned(simulate, simulate.plan, argv[0], zeropage::cli::simulate_listing);
  }
  if (ckpt_command->parsed()) {
    const auto outcome = zeropage::cli::run_ckpt_command(ckpt);
    std::fputs(outcome.text.c_str(), stdout);
    return outcome.code;
  }
  if (io_bench_command->parsed()) {
    zeropage::cli::run_io_bench(io_bench, [](const std::string& text) {
      std::fputs(text.c_str(), stdout);
      std::fflush(stdout);  // a measurement takes a while, and each line is printed after one
    });
    return 0;
  }
  zeropage::launch::finish_launch_options(app, options);
  return zeropage::launch::launch(options, argv[0]);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "zeropage: %s\n", error.what());
    return zeropage::exit_code(error, zeropage::kBugExitCode);
  }
}
