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
      string("output_path", "", kSupported, "Folder that contains the job's folder; empty: the working directory."),
      string("job_name", "DeepSpeedJobName", kSupported, "Name of the job's folder, which contains the files."),
  };
}

Section flops_profiler() {
  return switched(
      "flops_profiler", kSupported,
      "Operations of one step by module, and their share of the device's peak, by rank 0 (docs/monitoring.md).",
      {
          real("recompute_fwd_factor", 0.0, kAccepted,
               "Recomputation is counted when it runs, so no estimate is needed.")
              .at_least(0),
          integer("profile_step", 1, kSupported, "The step that is counted, from 1; it is slow.").at_least(1),
          integer("module_depth", -1, kSupported, "Modules below this depth are not listed; -1: all are.").at_least(-1),
          integer("top_modules", 1, kSupported, "Modules listed per depth when not detailed.").at_least(0),
          flag("detailed", true, kSupported, "List every module."),
          string("output_file", {}, kSupported, "File for the figures; null: stderr."),
      });
}

Section comet() {
  return switched(
      "comet", kNotBuilt, "Metrics to Comet.",
      {
          integer("samples_log_interval", 100, kNotBuilt, "Samples between two reports.").at_least(1),
          string("project", {}, kNotBuilt, "Project."),
          string("workspace", {}, kNotBuilt, "Workspace."),
          string("api_key", {}, kNotBuilt, "Key of the account."),
          string("experiment_name", {}, kNotBuilt, "Name."),
          string("experiment_key", {}, kNotBuilt, "Key of an experiment to continue."),
          flag("online", true, kNotBuilt, "Send at once."),
          string("mode", {}, kNotBuilt, "New or continued.").one_of({{"get"}, {"create"}, {"get_or_create"}}),
      });
}

}  // namespace

std::vector<Section> monitor_tables() {
  Section timers{"timers", "Timers."};
  Section throughput{"timers.throughput", "Samples per second."};
  throughput.keys = {
      flag("enabled", true, kAccepted, "The progress line always shows the throughput."),
      flag("synchronized", true, kAccepted, "The throughput is measured when the step waits for the device anyway."),
  };
  Section comms =
      switched("comms_logger", kSupported,
               "Table of rank 0's collectives by operation and size when the engine ends (docs/monitoring.md).",
               {
                   flag("verbose", false, kSupported, "Print a line for every operation, too."),
                   flag("prof_all", true, kSupported, "All operations."),
                   strings("prof_ops", {}, kSupported,
                           "The operations without prof_all: all_gather, reduce_scatter, all_reduce, broadcast, "
                           "all_to_all, barrier, exchange, copy."),
                   flag("debug", false, kSupported, "With verbose: name the page and its parameters."),
               });
  return {
      std::move(timers),
      std::move(throughput),
      std::move(comms),
      flops_profiler(),
      switched("tensorboard", kSupported, "Metrics to TensorBoard, by rank 0 (docs/monitoring.md).",
               file_writer_keys()),
      switched("wandb", kSupported, "Metrics to Weights & Biases, by rank 0. WANDB_MODE=offline needs no network.",
               {
                   string("group", {}, kSupported, "Group of the run."),
                   string("team", {}, kSupported, "Team or user that owns the run."),
                   string("project", "deepspeed", kSupported, "Project of the run."),
               }),
      switched("csv_monitor", kSupported, "Metrics to CSV files, one per metric, by rank 0.", file_writer_keys()),
      comet(),
  };
}

}  // namespace zeropage::config
