/// \file
/// Profilers and metric writers.
#include "zeropage/config/tables.h"

namespace zeropage::config {

using enum Status;

namespace {

Section switched(std::string path, std::string doc, std::vector<Key> keys) {
  Section section{std::move(path), std::move(doc)};
  section.keys = {flag("enabled", false, kNotBuilt, "Turns the section on.")};
  for (Key& key : keys) section.keys.push_back(std::move(key));
  section.switch_key = "enabled";
  return section;
}

std::vector<Key> file_writer_keys() {
  return {
      text("output_path", "", kNotBuilt, "Folder of the files."),
      text("job_name", "DeepSpeedJobName", kNotBuilt, "Folder inside it."),
  };
}

Section flops_profiler() {
  return switched(
      "flops_profiler", "Operations and time per module at one step.",
      {
          real("recompute_fwd_factor", 0.0, kNotBuilt, "Share of the forward that is recomputed.").at_least(0),
          integer("profile_step", 1, kNotBuilt, "The step.").at_least(0),
          integer("module_depth", -1, kNotBuilt, "Depth of the printed tree.").at_least(-1),
          integer("top_modules", 1, kNotBuilt, "Modules printed per depth.").at_least(0),
          flag("detailed", true, kNotBuilt, "Print every module."),
          text("output_file", {}, kNotBuilt, "File for the figures."),
      });
}

Section comet() {
  return switched("comet", "Metrics to Comet.",
                  {
                      integer("samples_log_interval", 100, kNotBuilt, "Samples between two reports.").at_least(1),
                      text("project", {}, kNotBuilt, "Project."),
                      text("workspace", {}, kNotBuilt, "Workspace."),
                      text("api_key", {}, kNotBuilt, "Key of the account."),
                      text("experiment_name", {}, kNotBuilt, "Name."),
                      text("experiment_key", {}, kNotBuilt, "Key of an experiment to continue."),
                      flag("online", true, kNotBuilt, "Send at once."),
                      text("mode", {}, kNotBuilt, "New or continued.").one_of({{"get"}, {"create"}, {"get_or_create"}}),
                  });
}

}  // namespace

std::vector<Section> monitor_tables() {
  Section timers{"timers", "Timers."};
  Section throughput{"timers.throughput", "Samples per second."};
  throughput.keys = {
      flag("enabled", true, kAccepted, "The progress line always shows the throughput."),
      flag("synchronized", true, kAccepted, "The figure is taken where the step waits for the device anyway."),
  };
  Section comms = switched("comms_logger", "Log of all communication.",
                           {
                               flag("verbose", false, kNotBuilt, "Print every operation."),
                               flag("prof_all", true, kNotBuilt, "Record every operation."),
                               texts("prof_ops", {}, kNotBuilt, "Record these operations."),
                               flag("debug", false, kNotBuilt, "Name the caller."),
                           });
  return {
      std::move(timers),
      std::move(throughput),
      std::move(comms),
      flops_profiler(),
      switched("tensorboard", "Metrics to TensorBoard.", file_writer_keys()),
      switched("wandb", "Metrics to Weights & Biases.",
               {
                   text("group", {}, kNotBuilt, "Group."),
                   text("team", {}, kNotBuilt, "Team."),
                   text("project", "deepspeed", kNotBuilt, "Project."),
               }),
      switched("csv_monitor", "Metrics to CSV files.", file_writer_keys()),
      comet(),
  };
}

}  // namespace zeropage::config
