/// \file
/// Profilers and metric writers.
#include "zeropage/config/tables.h"

namespace zeropage::config {

using enum Status;

namespace {

Section switched(std::string path, Status status, std::string doc, std::vector<Key> keys) {
  Section section{std::move(path), std::move(doc)};
  section.keys = {flag("enabled", false, status, "Turns the section on.")};
  for (Key& key : keys) section.keys.push_back(std::move(key));
  section.switch_key = "enabled";
  return section;
}

std::vector<Key> file_writer_keys() {
  return {
      text("output_path", "", kInForce, "Folder of the job's folder; empty: the working directory."),
      text("job_name", "DeepSpeedJobName", kInForce, "The job's folder, which holds the files."),
  };
}

Section flops_profiler() {
  return switched(
      "flops_profiler", kInForce,
      "Operations of one step by module, and their share of the device's peak, by rank 0 (docs/monitoring.md).",
      {
          real("recompute_fwd_factor", 0.0, kAccepted,
               "What is computed again is counted where it runs, and needs no estimate.")
              .at_least(0),
          integer("profile_step", 1, kInForce, "The step that is counted, from 1; it is slow.").at_least(1),
          integer("module_depth", -1, kInForce, "Modules below this depth are not listed; -1: all are.").at_least(-1),
          integer("top_modules", 1, kInForce, "Modules listed per depth when not detailed.").at_least(0),
          flag("detailed", true, kInForce, "List every module."),
          text("output_file", {}, kInForce, "File for the figures; null: stderr."),
      });
}

Section comet() {
  return switched("comet", kNotBuilt, "Metrics to Comet.",
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
  Section comms =
      switched("comms_logger", kInForce,
               "Table of rank 0's collectives by operation and size when the engine ends (docs/monitoring.md).",
               {
                   flag("verbose", false, kInForce, "Print a line for every operation, too."),
                   flag("prof_all", true, kInForce, "All operations."),
                   texts("prof_ops", {}, kInForce,
                         "Without prof_all these: all_gather, reduce_scatter, all_reduce, broadcast, "
                         "barrier, exchange, copy."),
                   flag("debug", false, kInForce, "With verbose: name the page and its parameters."),
               });
  return {
      std::move(timers),
      std::move(throughput),
      std::move(comms),
      flops_profiler(),
      switched("tensorboard", kInForce, "Metrics to TensorBoard, by rank 0 (docs/monitoring.md).", file_writer_keys()),
      switched("wandb", kInForce, "Metrics to Weights & Biases, by rank 0. WANDB_MODE=offline needs no network.",
               {
                   text("group", {}, kInForce, "Group of the run."),
                   text("team", {}, kInForce, "Team, or user, that the run belongs to."),
                   text("project", "deepspeed", kInForce, "Project of the run."),
               }),
      switched("csv_monitor", kInForce, "Metrics to CSV files, one per metric, by rank 0.", file_writer_keys()),
      comet(),
  };
}

}  // namespace zeropage::config
