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
                    "Print a progress line every so many steps; null or Infinity: the engine chooses the interval.");
  key.infinity_is_absent = true;
  return key.at_least(1);
}

std::vector<Key> batch_keys() {
  return {
      batch_key("train_batch_size",
                "Samples per optimizer step over all ranks = micro batch x accumulation steps x world size. Any of the "
                "three follows from the others. If it is the only one, the accumulation steps are 1. \"auto\": "
                "computed from the others."),
      batch_key("train_micro_batch_size_per_gpu",
                "Samples of one forward and backward on one rank; the program's loop makes these batches. \"auto\": "
                "computed from the other two; 1 when neither is a number."),
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
      real(
          "gradient_clipping", 0.0, kSupported,
          "Largest global 2-norm of the gradients; 0: no clipping, as in PyTorch. DeepSpeed since 2026-06 clips at 1.0 "
          "when the key is absent: write 1.0 to get that.")
          .at_least(0)
          .deepspeed_default("1.0"),
      flag(
          "prescale_gradients", false, kSupported,
          "Divide gradients by the world size before the reduction instead of after it (against overflow in 16 bits)."),
      real("gradient_predivide_factor", 1.0, kSupported,
           "With prescale_gradients: divide by this before the reduction and by the rest of the world size after it.")
          .positive(),
      string("gradient_allreduce_op", "mean", kSupported, "How the gradients of the ranks are combined.")
          .one_of({{"mean"}, {"sum"}}),
      flag("sparse_gradients", false, kRemoved, "Exchange embedding gradients as index and value lists."),
      flag("disable_allgather", false, kAccepted, "Updated parameters are always all-gathered: the same values."),
      string("communication_data_type", {}, kSupported,
             "Type in which gradients are sent; null: the type that the gradients have.")
          .one_of({{"fp32"}, {"fp16"}, {"bf16"}}),
      string("seq_parallel_communication_data_type", "fp32", kAccepted,
             "Ranks do not share a sequence, so nothing is sent in this type.")
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
           "Rank 0 prints the times of the parts of a step every steps_per_print steps (10 if it is null). Each phase "
           "then waits for the device."),
      flag("memory_breakdown", false, kSupported,
           "Rank 0 prints the memory in use after each phase of the same steps."),
      string("log_level", {}, kSupported,
             "Lowest severity of messages that this process prints; null: unchanged, initially \"info\".")
          .one_of({{"debug"}, {"info"}, {"warning", kSupported, {"warn"}}, {"error"}, {"critical"}}),
      flag("disable_python_gc", false, kSupported,
           "Python's cyclic garbage collector runs once when the engine is made, and then only when "
           "engine.collect_python_gc() is called, until the last such engine ends. C++ programs have none."),
      integer("vocabulary_size", {}, kSupported,
              "Vocabulary size of the model; a warning is printed if it is not a multiple of 8.")
          .at_least(1),
      flag("graph_harvesting", false, kRemoved, "Capture CUDA graphs of the step."),
      flag("use_data_before_expert_parallelism", false, kAccepted,
           "There are no groups of experts, so there is no order."),
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
      dtype_key("grad_accum_dtype",
                "Type in which gradients are summed; null: fp32. A whole gradient that is only stored (stages 0 and 1, "
                "one accumulation step) keeps the parameters' type until a second one is added to it.")
          .deepspeed_default("the parameters' type; null means fp32 here"),
      dtype_key("param_dtype",
                "Type of parameters: the same as the enabled precision section, or used instead of such a section. "
                "Null and no section: bf16 parameters stay bf16, with fp32 masters, and all others are fp32."),
      dtype_key("buffer_dtype", "Type of floating-point buffers; null: each keeps its type in the model."),
      strings(
          "keep_in_fp32_modules", {"auto"}, kSupported,
          "Parameters that are fp32 in a 16-bit model: modules or parameters by name: consecutive whole parts between "
          "dots (a regular expression). auto: those that a transformers model declares, and norms with running "
          "statistics.")
          .or_one_string(),
  };
  return {std::move(top), std::move(types)};
}

}  // namespace zeropage::config
