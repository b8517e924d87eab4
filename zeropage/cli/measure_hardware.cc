#include "zeropage/cli/measure_hardware.h"

#include <fmt/format.h>
#include <unistd.h>

#include <filesystem>

#include "zeropage/base/error.h"
#include "zeropage/cli/output_file.h"
#include "zeropage/launch/launch.h"
#include "zeropage/planner/model.h"

namespace zeropage::cli {
namespace {

launch::LaunchOptions job_of(const PlanCommand& command, const std::string& output) {
  const planner::Shape shape = planner::read_model(command.model).shape;
  launch::LaunchOptions options;
  options.hostfile = "";
  options.num_ranks = command.options.num_gpus;
  options.module = options.safe_path = options.no_local_rank = options.quiet = true;
  options.script = "zeropage.tools.measure";
  options.script_args = {"--output",      output,
                         "--precision",   command.options.precision,
                         "--width",       std::to_string(shape.hidden),
                         "--sequence",    std::to_string(command.options.sequence),
                         "--micro_batch", std::to_string(command.options.micro_batch),
                         "--disk_folder", command.disk_folder.empty() ? "." : command.disk_folder};
  return options;
}

}  // namespace

std::string measure_machine(PlanCommand& command, const std::string& argv0) {
  if (!command.measure) {
    if (command.save_machine.empty()) return "";
    throw ConfigError("--save_machine: expected --measure, too, which measures the figures to save");
  }
  const bool is_kept = !command.save_machine.empty();
  if (is_kept) require_new_file("--save_machine", command.save_machine);
  if (command.options.num_nodes > 1 && command.options.figures["network_rate"].empty()) {
    throw ConfigError("--measure: expected --network_rate for several hosts, since this one cannot measure it alone");
  }
  const auto folder = std::filesystem::temp_directory_path();
  const std::string output = is_kept ? std::filesystem::absolute(command.save_machine).string()
                                     : (folder / fmt::format("zeropage_machine_{}.json", ::getpid())).string();
  const int code = launch::launch(job_of(command, output), argv0);
  if (code != 0) throw IoError(fmt::format("--measure: the job that measures ended with exit code {}", code));
  command.options.device = output;
  return is_kept ? "" : output;
}

}  // namespace zeropage::cli
