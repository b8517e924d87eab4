/// \file
/// The keys outside any section, and data_types.
#include "zeropage/config/tables.h"

namespace zeropage::config {

using enum Status;

namespace {

constexpr double kMaxBatch = 1e12;

Key batch_key(std::string name, std::string doc) {
  return integer(std::move(name), {}, kSupported, std::move(doc)).between(1, kMaxBatch).or_auto();
}

Key steps_per_print() {
  Key key = integer("steps_per_print", {}, kSupported,
                    "Print a progress line every so many steps; null or Infinity: the engine's own pace.");
  key.infinity_is_absent = true;
  return key.at_least(1);
}

std::vector<Key> batch_keys() {
  return {
      batch_key("train_batch_size",
                "Samples per optimizer step over all ranks = micro batch x accumulation steps x world size. Any of the "
                "three follows from the others; alone, the accumulation steps are 1. \"auto\": it follows."),
      batch_key("train_micro_batch_size_per_gpu",
                "Samples of one forward and backward on one rank, which the program's loop makes. \"auto\": it follows "
                "from the other two; 1 when neither is a number."),
      batch_key("gradient_accumulation_steps", "Micro batches per optimizer step."),
      flag("managed_gradient_accumulation", true, kSupported,
           "false: every step() updates, after as many backwards as the program runs; each counts as a micro batch. "
           "Losses are still divided by gradient_accumulation_steps, unless backward(scale_wrt_gas=False) says "
           "otherwise.")
          .differing("the same numbers; stages 0 and 1, too, reduce gradients at the end of every backward"),
      integer("data_parallel_size", {}, kNotBuilt, "Ranks of the data-parallel mesh dimension.").at_least(1),
      integer("sequence_parallel_size", 1, kNotBuilt, "Ranks that share one sequence.").at_least(1),
  };
}

std::vector<Key> gradient_keys() {
  return {
      real("gradient_clipping", 0.0, kSupported,
           "Largest global 2-norm of the gradients; 0 does not clip, as PyTorch. DeepSpeed since 2026-06 clips at 1.0 "
           "when the key is absent: write 1.0 to get that.")
          .at_least(0)
          .deepspeed_default("1.0"),
      flag(
          "prescale_gradients", false, kSupported,
          "Divide gradients by the world size before the reduction instead of after it (against overflow in 16 bits)."),
      real("gradient_predivide_factor", 1.0, kSupported,
           "With prescale_gradients: divide by this before the reduction and by the rest of the world size after it.")
          .positive(),
      string("gradient_allreduce_op", "mean", kSupported, "How the ranks' gradients become one.")
          .one_of({{"mean"}, {"sum"}}),
      flag("sparse_gradients", false, kRemoved, "Exchange embedding gradients as index and value lists."),
      flag("disable_allgather", false, kAccepted, "Updated parameters are always all-gathered: the same values."),
      string("communication_data_type", {}, kSupported,
             "Type of the gradients on the wire; null: the type the gradients have.")
          .one_of({{"fp32"}, {"fp16"}, {"bf16"}}),
      string("seq_parallel_communication_data_type", "fp32", kAccepted,
             "No ranks share a sequence, so nothing travels in this type.")
          .one_of({{"fp32"}, {"fp16"}, {"bf16"}}),
  };
}

std::vector<Key> other_keys() {
  return {
      flag("zero_allow_untested_optimizer", false, kSupported,
           "Accept an optimizer object whose class is not known to treat every element alike; it runs on shards."),
      flag("zero_force_ds_cpu_optimizer", true, kAccepted,
           "Concerns CPU offload only, where there is one optimizer anyway."),
      integer("allgather_size", {}, kAccepted,
              "Deprecated, sets the bucket with \"zero_optimization\": true only; write "
              "zero_optimization.allgather_bucket_size.")
          .at_least(1),
      steps_per_print(),
      flag("dump_state", false, kSupported, "Print the effective configuration when the engine starts."),
      flag("dataloader_drop_last", false, kSupported, "Drop the last batch of an epoch when it is not full."),
      flag("wall_clock_breakdown", false, kSupported,
           "Print where the time of a step goes every steps_per_print steps (else 10), by rank 0. On a device each "
           "phase waits for it."),
      flag("memory_breakdown", false, kSupported, "Print memory in use after each phase of the same steps, by rank 0."),
      string("log_level", {}, kSupported,
             "Least severe message that this process prints; null: leave it, \"info\" at first.")
          .one_of({{"debug"}, {"info"}, {"warning", kSupported, {"warn"}}, {"error"}, {"critical"}}),
      flag("disable_python_gc", false, kSupported,
           "Python's cyclic garbage collector runs once when the engine is made, and then only when "
           "engine.collect_python_gc() is called, until the last such engine ends. C++ programs have none."),
      integer("vocabulary_size", {}, kSupported, "Warn when a vocabulary is not a multiple of 8.").at_least(1),
      flag("graph_harvesting", false, kRemoved, "Capture CUDA graphs of the step."),
      flag("use_data_before_expert_parallelism", false, kAccepted, "There are no groups of experts to order."),
      switched_section("amp", kRemoved, "Mixed precision by NVIDIA Apex; use fp16 or bf16."),
      switched_section("nebula", kRemoved, "The Nebula checkpoint service."),
      switched_section("datastates_ckpt", kNotBuilt, "The DataStates checkpoint engine."),
      switched_section("pipeline", kNotBuilt, "Pipeline parallelism."),
      switched_section("tensor_parallel", kNotBuilt, "Tensor parallelism."),
      switched_section("expert_parallel", kNotBuilt, "Expert parallelism."),
      switched_section("hybrid_engine", kNotBuilt, "Switching between training and generation kernels."),
      switched_section("sparse_attention", kRemoved, "Block-sparse attention kernels."),
      switched_section("curriculum_learning", kRemoved, "Sequence length curriculum."),
      switched_section("data_efficiency", kNotBuilt, "Data sampling and token dropping."),
      switched_section("progressive_layer_drop", kRemoved, "Dropping layers at random while training."),
      switched_section("eigenvalue", kRemoved, "Eigenvalues for quantized training."),
      switched_section("quantize_training", kRemoved, "Quantized training."),
      switched_section("compression_training", kRemoved, "Pruning and quantization while training."),
      switched_section("weight_quantization", kNotBuilt, "Quantized weights at load time."),
  };
}

Key dtype_key(std::string name, std::string doc) {
  return string(std::move(name), {}, kSupported, std::move(doc))
      .one_of({{"fp32", kSupported, {"float32", "float", "torch.float32", "torch.float"}},
               {"fp16", kSupported, {"float16", "half", "torch.float16", "torch.half"}},
               {"bf16", kSupported, {"bfloat16", "torch.bfloat16"}}});
}

}  // namespace

std::vector<Section> top_level_tables() {
  Section top{"", "Keys outside any section."};
  for (const auto group : {batch_keys, gradient_keys, other_keys}) {
    for (Key& key : group()) top.keys.push_back(std::move(key));
  }
  Section types{"data_types", "Element types."};
  types.keys = {
      dtype_key(
          "grad_accum_dtype",
          "Type in which gradients are summed; null: fp32. A whole gradient that is only stored (stages 0 and 1, one "
          "accumulation step) has the parameters' type until two meet in one update.")
          .deepspeed_default("the parameters' type; null means fp32 here"),
      dtype_key("param_dtype",
                "Type of parameters: that of the enabled precision section, or instead of one; null and no section: "
                "bf16 parameters stay bf16, with fp32 masters, and all others are fp32."),
      dtype_key("buffer_dtype", "Type of floating-point buffers; null: each keeps the type that the model has it in."),
      strings("keep_in_fp32_modules", {"auto"}, kSupported,
              "Parameters that are fp32 in a 16-bit model: modules or parameters by name, a run of whole parts between "
              "dots (a regular expression). auto: what a transformers model declares, and norms with running "
              "statistics.")
          .or_one_text(),
  };
  return {std::move(top), std::move(types)};
}

}  // namespace zeropage::config
