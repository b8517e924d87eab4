/// \file
/// elasticity, autotuning and compile.
#include "zeropage/config/tables.h"

namespace zeropage::config {

using enum Status;

namespace {

Section elasticity() {
  Section section{"elasticity", "Batch sizes that fit many world sizes."};
  section.keys = {
      flag("enabled", false, kRemoved, "Turns the section on."),
      integer("max_train_batch_size", 2000, kRemoved, "Largest batch.").at_least(1),
      floats("micro_batch_sizes", {2, 4, 6}, 0, kRemoved, "Micro batch sizes to choose from.").at_least(1),
      integer("min_gpus", 1, kRemoved, "Smallest world size.").at_least(1),
      integer("max_gpus", 10'000, kRemoved, "Largest world size.").at_least(1),
      integer("min_time", 0, kRemoved, "Minutes between two changes.").at_least(0),
      flag("prefer_larger_batch", true, kRemoved, "Choose the largest batch."),
      flag("ignore_non_elastic_batch_info", false, kRemoved, "Allow the batch keys together with this section."),
      real("version", 0.2, kRemoved, "Version of the rule.").at_least(0),
      integer("model_parallel_size", 1, kRemoved, "Ranks of one copy of the model.").at_least(1),
      integer("num_gpus_per_node", 1, kRemoved, "Ranks of one host.").at_least(1),
  };
  section.switch_key = "enabled";
  return section;
}

Section autotuning() {
  Section section{"autotuning", "Search for fast settings by trials."};
  section.keys = {
      flag("enabled", false, kNotBuilt, "Turns the section on."),
      flag("fast", true, kNotBuilt, "Tune the micro batch size only."),
      string("results_dir", "autotuning_results", kNotBuilt, "Folder of the results."),
      string("exps_dir", "autotuning_exps", kNotBuilt, "Folder of the trials."),
      flag("overwrite", true, kNotBuilt, "Replace old results."),
      integer("start_profile_step", 3, kNotBuilt, "First timed step.").at_least(0),
      integer("end_profile_step", 5, kNotBuilt, "Last timed step.").at_least(0),
      string("metric", "throughput", kNotBuilt, "The figure to optimize.")
          .one_of({{"throughput"}, {"latency"}, {"flops"}}),
      string("metric_path", {}, kNotBuilt, "File with the program's own figure."),
      string("tuner_type", "gridsearch", kNotBuilt, "How trials are chosen.")
          .one_of({{"gridsearch"}, {"random"}, {"model_based"}}),
      integer("tuner_early_stopping", 5, kNotBuilt, "Trials without progress before the end.").at_least(0),
      integer("tuner_num_trials", 50, kNotBuilt, "Most trials.").at_least(1),
      string("model_info_path", {}, kNotBuilt, "File with the figures of the model."),
      integer("mp_size", 1, kNotBuilt, "Ranks of one copy of the model.").at_least(1),
      integer("max_train_batch_size", {}, kNotBuilt, "Largest batch.").at_least(1),
      integer("min_train_batch_size", 1, kNotBuilt, "Smallest batch.").at_least(1),
      integer("max_train_micro_batch_size_per_gpu", 1024, kNotBuilt, "Largest micro batch.").at_least(1),
      integer("min_train_micro_batch_size_per_gpu", 1, kNotBuilt, "Smallest micro batch.").at_least(1),
      integer("num_tuning_micro_batch_sizes", 3, kNotBuilt, "Micro batch sizes to try.").at_least(1),
      switched_section("arg_mappings", kNotBuilt, "Program arguments for each key."),
  };
  section.switch_key = "enabled";
  return section;
}

Section model_info() {
  Section section{"autotuning.model_info", "Figures of the model."};
  section.keys = {
      flag("profile", false, kNotBuilt, "Measure them."),
      integer("num_params", {}, kNotBuilt, "Parameters.").at_least(1),
      integer("hidden_size", {}, kNotBuilt, "Width.").at_least(1),
      integer("num_layers", {}, kNotBuilt, "Layers.").at_least(1),
  };
  return section;
}

Section compile() {
  Section section{"compile", "DeepCompile."};
  for (const char* name : {"deepcompile", "free_activation", "offload_activation", "offload_opt_states",
                           "offload_parameters", "symmetric_memory", "debug_log", "sync_before_reduce",
                           "sync_after_reduce", "sync_before_allgather", "sync_after_allgather"}) {
    section.keys.push_back(flag(name, false, kNotBuilt, "A pass or check of DeepCompile."));
  }
  for (const char* name : {"double_buffer", "keep_int_input_tensors", "offload_activation_pin_memory"}) {
    section.keys.push_back(flag(name, true, kNotBuilt, "A choice of DeepCompile."));
  }
  section.keys.push_back(
      integer("free_activation_threshold", 10'485'760, kNotBuilt, "Bytes from which an activation is freed.")
          .at_least(0));
  section.keys.push_back(strings("passes", {}, kNotBuilt, "Names of the passes."));
  section.switch_key = "deepcompile";
  return section;
}

}  // namespace

std::vector<Section> automation_tables() { return {elasticity(), autotuning(), model_info(), compile()}; }

}  // namespace zeropage::config
