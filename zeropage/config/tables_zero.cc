/// \file
/// zero_optimization and the sections inside it.
#include "zeropage/config/tables.h"

namespace zeropage::config {

using enum Status;

namespace {

std::vector<Key> stage_keys() {
  return {
      integer("stage", 0, kSupported,
              "What is sharded over the ranks: 0 nothing, 1 optimizer state, 2 also gradients, 3 also parameters.")
          .between(0, 3)
          .or_auto(),
      flag("contiguous_gradients", true, kAccepted, "Gradients are always in one flat buffer per page."),
      flag("reduce_scatter", true, kSupported,
           "false: all-reduce gradients and keep this rank's part (more communication)."),
      integer("reduce_bucket_size", 500'000'000, kSupported, "Most elements of one gradient reduction.")
          .at_least(1)
          .or_fraction()
          .or_auto(),
      flag("use_multi_rank_bucket_allreduce", true, kAccepted, "Pages always span all ranks."),
      flag("allgather_partitions", true, kAccepted, "Updated pages are always all-gathered in place."),
      integer("allgather_bucket_size", 500'000'000, kSupported, "Most elements of one all-gather after the update.")
          .at_least(1)
          .or_fraction()
          .or_auto(),
      flag("overlap_comm", true, kSupported,
           "Reduce gradients while the backward before a step runs (stages 2 and 3: every backward); false: stages 0 "
           "and 1 reduce in step(), 2 and 3 wait for each reduction. The results have the same bits and need no more "
           "memory, so the default is true at every stage; DeepSpeed's default is true at stage 3 only."),
      flag("load_from_fp32_weights", true, kAccepted, "Checkpoints contain the master weights, and these are loaded."),
      flag("elastic_checkpoint", false, kAccepted, "Checkpoints load at any world size and stage."),
      integer("sub_group_size", 1'000'000'000, kAccepted, "The update runs page by page, never over a larger group.")
          .at_least(0)
          .or_fraction(),
      flag("ignore_unused_parameters", true, kNotBuilt,
           "Parameters without a gradient stay unchanged; false: an error."),
      flag("legacy_stage1", false, kNotBuilt, "The first implementation of stage 1, which DeepSpeed refuses, too."),
      flag("round_robin_gradients", false, kAccepted, "Every page is always divided evenly over all ranks."),
      flag("memory_efficient_linear", true, kAccepted, "Linear layers keep no gathered copy of their weights here."),
      flag("pipeline_loading_checkpoint", false, kAccepted, "Each rank reads only its part of a checkpoint."),
      flag("override_module_apply", true, kAccepted, "Module.apply works at every stage without being replaced."),
      flag("log_trace_cache_warnings", false, kAccepted, "There is no trace of modules to warn about."),
      flag("enable_sanity_checks", false, kAccepted,
           "Ranks always compare their collectives, and the values that must be the same on all ranks "
           "(zeropage.replica_check_steps)."),
      flag(
          "save_muon_momentum_buffer_in_memory", false, kSupported,
          "With NVMe offload Muon's momenta stay in host memory: 4 bytes per element that a rank owns. false: they are "
          "on the drive, and the update reads and writes one parameter's at a time."),
      flag("compute_grad_norm", true, kSupported,
           "false: the norm of the gradients (get_global_grad_norm()) is not computed; not with gradient_clipping. If "
           "no step can be skipped (fp32; bf16 without check_grad_overflow), this saves one read of the gradients.")
          .differing("works at every stage and with offload, too"),
      flag("parameter_alignment", false, kAccepted, "Every parameter starts at a multiple of 64 elements of its page."),
  };
}

std::vector<Key> stage3_keys() {
  return {
      integer("stage3_prefetch_bucket_size", 50'000'000, kSupported, "Most elements gathered ahead of use.")
          .at_least(0)
          .or_fraction()
          .or_auto()
          .also_named({"prefetch_bucket_size"}),
      integer("stage3_param_persistence_threshold", 100'000, kSupported, "Parameters of fewer elements stay gathered.")
          .at_least(0)
          .or_fraction()
          .also_named({"param_persistence_threshold"}),
      integer("stage3_model_persistence_threshold", INT64_MAX, kSupported,
              "Most elements of all parameters that stay gathered.")
          .at_least(0)
          .or_fraction()
          .also_named({"model_persistence_threshold"}),
      integer("stage3_max_live_parameters", 1'000'000'000, kSupported, "Most gathered elements at a time.")
          .at_least(0)
          .or_fraction()
          .or_auto()
          .also_named({"max_live_parameters"}),
      integer("stage3_max_reuse_distance", 1'000'000'000, kSupported,
              "A parameter that is used again within so many elements stays gathered, if the limit on live parameters "
              "allows it.")
          .at_least(0)
          .or_fraction()
          .also_named({"max_reuse_distance"}),
      flag("stage3_gather_16bit_weights_on_model_save", false, kSupported, "Let save_16bit_model gather whole weights.")
          .also_named({"gather_16bit_weights_on_model_save", "stage3_gather_fp16_weights_on_model_save"}),
      integer("stage3_module_granularity_threshold", 0, kAccepted, "Parameters are found at operators, not modules.")
          .at_least(0)
          .also_named({"module_granularity_threshold"}),
      flag("stage3_use_all_reduce_for_fetch_params", false, kAccepted,
           "A page is gathered by one all-gather of equal shards.")
          .also_named({"use_all_reduce_for_fetch_params"}),
      flag("stage3_allgather_sequential", false, kAccepted, "Pages are gathered one after the other already.")
          .also_named({"allgather_sequential"}),
  };
}

std::vector<Key> later_keys() {
  return {
      integer("zero_hpz_partition_size", 1, kSupported,
              "ZeRO++: so many ranks of a host keep second shards of gathered parameters, one part each. Until the "
              "next update they gather from these shards, and nothing from other hosts (docs/launcher.md). A divisor "
              "of the ranks of a host; 1: "
              "off.")
          .at_least(1),
      flag("zero_quantized_weights", false, kSupported,
           "ZeRO++: gather sharded parameters in 8 bits (stage 3). Shards, saved models and checkpoints stay exact."),
      flag("zero_quantized_nontrainable_weights", false, kSupported, "ZeRO++: the same for frozen parameters only.")
          .differing("Only gathers are in 8 bits; the shards themselves keep their type"),
      flag("zero_quantized_gradients", false, kSupported,
           "ZeRO++: reduce gradients in 4 bits (stages 1 to 3), added in fp32.")
          .differing(
              "A gradient is coded once, before it is sent to its owner: on one host the gradients of each rank, "
              "between "
              "hosts the exact sums of each host (docs/launcher.md). DeepSpeed codes twice, and only at stage 3"),
      integer("mics_shard_size", -1, kSupported,
              "MiCS: ranks that share one copy of the state, as zeropage.shard_ranks; -1: all ranks.")
          .at_least(-1)
          .differing(
              "DeepSpeed removed it in 2026. Here it works at stages 1 to 3, and sums are added in the order of all "
              "ranks"),
      flag("mics_hierarchical_params_gather", false, kAccepted,
           "MiCS: groups are inside a host, so that gathers are, too."),
      flag("cpu_offload", false, kSupported, "Deprecated form of offload_optimizer.device \"cpu\"."),
      flag("cpu_offload_param", false, kSupported, "Deprecated form of offload_param.device \"cpu\"."),
      flag("cpu_offload_use_pin_memory", false, kAccepted, "Deprecated, and without effect in DeepSpeed, too."),
  };
}

Key device_key() {
  return string("device", "none", kSupported, "Memory of this state while it is not in use; none: the device.")
      .one_of({{"none"}, {"cpu"}, {"nvme"}})
      .or_auto();
}

Key folders_key() {
  return strings("nvme_path", {}, kSupported,
                 "A folder on the drive, or a list of folders. Each folder gets a part of every page.")
      .or_one_string();
}

Section offload_param() {
  Section section{"zero_optimization.offload_param", "Where the parameters are kept (stage 3)."};
  section.keys = {
      device_key(),
      folders_key(),
      integer("buffer_count", 5, kSupported, "For NVMe: pages in memory at the same time, at least 3.")
          .between(0, 1024),
      integer("buffer_size", 100'000'000, kAccepted, "A buffer holds a page, whatever its size.")
          .at_least(0)
          .or_fraction(),
      integer("max_in_cpu", 1'000'000'000, kSupported,
              "For NVMe: elements of each rank's shards that stay in host memory, in whole pages.")
          .at_least(0)
          .or_fraction(),
      flag("pin_memory", true, kSupported, "Page-locked host memory, where there is a GPU."),
  };
  section.switch_key = "device";
  return section;
}

Section offload_optimizer() {
  Section section{"zero_optimization.offload_optimizer",
                  "Where the optimizer state is kept; zeropage.offloaded_update determines where its update runs."};
  section.keys = {
      device_key(),
      folders_key(),
      integer("buffer_count", 4, kSupported,
              "For NVMe: pages in memory at the same time, of 12 bytes per element, at least 3.")
          .between(0, 1024),
      flag("pin_memory", true, kSupported, "Page-locked host memory, where there is a GPU."),
      flag("pipeline_read", false, kAccepted, "The next page is always read while one is updated."),
      flag("pipeline_write", false, kAccepted, "The previous page is always written while one is updated."),
      flag("fast_init", false, kAccepted, "State is always initialized page by page, and zeros are not written."),
      real(
          "ratio", 1.0, kSupported,
          "Share of the optimizer state that is offloaded, and of the update that runs on the host, in whole pages; at "
          "every stage.")
          .between(0, 1)
          .differing("works at every stage, not at stage 3 only"),
      flag("super_offload", false, kAccepted,
           "Updates of offloaded state overlap with the backward without it (zeropage.speculation_bytes)."),
      real("cpuadam_cores_perc", 0.8, kAccepted, "The threads of a rank (OMP_NUM_THREADS) compute the update.")
          .between(0, 1),
  };
  section.switch_key = "device";
  return section;
}

Section zenflow() {
  Section section{"zero_optimization.zenflow", "ZenFlow: update important gradients at once and others later."};
  section.keys = {
      real("topk_ratio", 0.1, kNotBuilt, "Share of important columns.").between(0, 1),
      string("select_strategy", "auto", kNotBuilt, "When importance is computed.")
          .one_of({{"auto"}, {"step"}, {"epoch"}}),
      string("select_interval", "auto", kNotBuilt, "Steps between two computations of importance."),
      string("update_interval", "auto", kNotBuilt, "Steps between two late updates."),
      flag("overlap_step", false, kNotBuilt, "Overlap the late update with the next steps."),
      flag("offload", false, kNotBuilt, "Keep the selected state on the host."),
      real("auto_ratio", 0.99, kNotBuilt, "Threshold of the automatic interval.").between(0, 1),
      integer("full_warm_up_rounds", 0, kNotBuilt, "Full updates at the start.").at_least(0),
      real("pt_reserved_cores_perc", 0.5, kNotBuilt, "Share of the cores kept for PyTorch.").between(0, 1),
  };
  section.presence_not_built = true;
  return section;
}

}  // namespace

std::vector<Section> zero_tables() {
  Section zero{
      "zero_optimization",
      "The ZeRO engine. `\"zero_optimization\": true` (or false) is the deprecated form of stage 1 (or 0). The "
      "keys stage3_x are also accepted as x."};
  for (const auto group : {stage_keys, stage3_keys, later_keys}) {
    for (Key& key : group()) zero.keys.push_back(std::move(key));
  }
  Section loco{"zero_optimization.zeropp_loco_param", "ZeRO++: error feedback of quantized gradients."};
  loco.keys = {
      real("err_beta", 0.8, kRemoved, "Moving average of the error.").between(0, 1),
      integer("reset_T", 1024, kRemoved, "Steps after which the error is reset.").at_least(1),
  };
  loco.presence_not_built = true;
  Section leaf{"zero_optimization.leaf_module",
               "Modules that are treated as one. Zeropage gathers parameters at operators, so no module needs this."};
  leaf.keys = {
      strings("classes", {}, kAccepted, "Class names; without effect."),
      strings("names", {}, kAccepted, "Module names; without effect."),
      strings("name_suffixes", {}, kAccepted, "Ends of module names; without effect."),
  };
  return {std::move(zero), offload_param(), offload_optimizer(), zenflow(), std::move(loco), std::move(leaf)};
}

}  // namespace zeropage::config
