/// Would catch: a key that is read into the wrong field or not at all, an alias or deprecated form that does not work
/// any more, different defaults in tables and structs.
#include "zeropage/config/config.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <limits>

#include "zeropage/base/error.h"
#include "zeropage/config/effective.h"

namespace zeropage::config {
namespace {

/// A configuration with one micro batch and `more` keys.
Config config_with(const std::string& more) {
  return Config::from_json(R"({"train_micro_batch_size_per_gpu": 1)" + (more.empty() ? "" : ", " + more) + "}", 1);
}

Zero zero_with(const std::string& keys) { return config_with(R"("zero_optimization": {)" + keys + "}").zero; }

Schedule schedule_with(const std::string& type, const std::string& params) {
  return config_with(R"("scheduler": {"type": ")" + type + R"(", "params": {)" + params + "}}").schedule;
}

TEST(Config, the_first_light_configuration) {
  const Config config = Config::from_json(R"(
    {"train_batch_size": 256, "gradient_accumulation_steps": 4, "fp16": {"enabled": true},
     "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "none"}, "contiguous_gradients": true,
                           "overlap_comm": true, "reduce_scatter": true},
     "optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "weight_decay": 0.01}}})",
                                          2);
  EXPECT_EQ(config.batch.train_batch_size, 256);
  EXPECT_EQ(config.batch.micro_batch_size, 32);
  EXPECT_EQ(config.batch.accumulation_steps, 4);
  EXPECT_EQ(config.precision, Precision::kFp16);
  EXPECT_TRUE(config.loss_scale.dynamic);
  EXPECT_EQ(config.zero.stage, 2);
  EXPECT_TRUE(config.zero.reduce_scatter);
  EXPECT_EQ(config.optimizer.kind, OptimizerKind::kAdamW);
  EXPECT_EQ(config.optimizer.params.lr, 1e-4);
  EXPECT_EQ(config.optimizer.params.weight_decay, 0.01);
  EXPECT_TRUE(config.optimizer.params.decoupled_decay);
}

TEST(Config, defaults_of_tables_and_structs_agree) {
  const Config read = config_with("");
  const Config built;
  EXPECT_EQ(read.precision, built.precision);
  EXPECT_EQ(read.loss_scale, built.loss_scale);
  EXPECT_EQ(read.cast_inputs, built.cast_inputs);
  EXPECT_EQ(read.gradients, built.gradients);
  EXPECT_EQ(read.zero, built.zero);
  EXPECT_EQ(read.optimizer, built.optimizer);
  EXPECT_EQ(read.schedule, built.schedule);
  EXPECT_EQ(read.steps_per_print, built.steps_per_print);
  EXPECT_EQ(read.dump_state, built.dump_state);
  EXPECT_EQ(read.dataloader_drop_last, built.dataloader_drop_last);
  EXPECT_EQ(read.allow_untested_optimizer, built.allow_untested_optimizer);
  EXPECT_EQ(read.zeropage, built.zeropage);
  EXPECT_EQ(config_with(R"("optimizer": {"type": "AdamW"})").optimizer.params, OptimizerParams{});
}

TEST(Config, fp16_keys) {
  const Config config =
      config_with(R"("fp16": {"enabled": true, "auto_cast": true, "loss_scale": 128, "initial_scale_power": 8,
      "loss_scale_window": 50, "hysteresis": 3, "consecutive_hysteresis": true, "min_loss_scale": 4})");
  EXPECT_TRUE(config.cast_inputs);
  EXPECT_EQ(config.loss_scale, (LossScale{false, 128, 8, 50, 3, true, 4}));
}

TEST(Config, bf16_and_its_alias) {
  EXPECT_EQ(config_with(R"("bf16": {"enabled": true})").precision, Precision::kBf16);
  const Config config = config_with(R"("bfloat16": {"enabled": true, "check_grad_overflow": false})");
  EXPECT_EQ(config.precision, Precision::kBf16);
  EXPECT_FALSE(config.gradients.check_overflow);
  EXPECT_TRUE(
      config_with(R"("bf16": {"check_grad_overflow": false}, "fp16": {"enabled": true})").gradients.check_overflow);
}

TEST(Config, gradient_keys_and_types) {
  const Gradients gradients = config_with(R"("gradient_clipping": 0.5, "prescale_gradients": true,
      "gradient_predivide_factor": 2, "gradient_allreduce_op": "SUM", "communication_data_type": "bf16",
      "data_types": {"grad_accum_dtype": "torch.float32", "param_dtype": "float", "buffer_dtype": "fp32"})")
                                  .gradients;
  EXPECT_EQ(gradients, (Gradients{0.5, true, 2.0, true, DType::kFloat32, DType::kBFloat16, true}));
}

TEST(Config, types_of_the_model) {
  EXPECT_EQ(config_with("").types, (DataTypes{false, std::nullopt, true, {}}));
  EXPECT_EQ(config_with(R"("data_types": {"param_dtype": "bf16"})").precision, Precision::kBf16);
  EXPECT_EQ(config_with(R"("bf16": {"enabled": true},
      "data_types": {"buffer_dtype": "float32", "keep_in_fp32_modules": ["router", "norm"]})")
                .types,
            (DataTypes{true, DType::kFloat32, false, {"router", "norm"}}));
  EXPECT_EQ(config_with(R"("data_types": {"keep_in_fp32_modules": []})").types,
            (DataTypes{false, std::nullopt, false, {}}));
  EXPECT_EQ(config_with(R"("data_types": {"keep_in_fp32_modules": "router"})").types.in_fp32,
            std::vector<std::string>{"router"});
}

TEST(Config, zero_keys) {
  const Zero zero = zero_with(R"("stage": 3, "reduce_scatter": false, "overlap_comm": false, "reduce_bucket_size": 5e8,
      "allgather_bucket_size": 2e8, "stage3_prefetch_bucket_size": 3, "stage3_param_persistence_threshold": 4,
      "stage3_model_persistence_threshold": 5, "stage3_max_live_parameters": 6, "stage3_max_reuse_distance": 7,
      "stage3_gather_16bit_weights_on_model_save": true)");
  EXPECT_EQ(zero, (Zero{3, false, false, 500'000'000, 200'000'000, 3, 4, 5, 6, 7, true}));
}

TEST(Config, stage3_aliases_mean_the_same) {
  const Zero zero = zero_with(R"("stage": 3, "prefetch_bucket_size": 3, "param_persistence_threshold": 4,
      "model_persistence_threshold": 5, "max_live_parameters": 6, "max_reuse_distance": 7,
      "gather_16bit_weights_on_model_save": true, "module_granularity_threshold": 1,
      "use_all_reduce_for_fetch_params": true, "allgather_sequential": true)");
  EXPECT_EQ(zero, (Zero{3, true, true, 500'000'000, 500'000'000, 3, 4, 5, 6, 7, true}));
  EXPECT_TRUE(zero_with(R"("stage3_gather_fp16_weights_on_model_save": true)").gather_16bit_weights_on_model_save);
}

TEST(Config, deprecated_forms_of_zero) {
  EXPECT_EQ(config_with(R"("zero_optimization": true)").zero.stage, 1);
  EXPECT_EQ(config_with(R"("zero_optimization": false)").zero.stage, 0);
  EXPECT_EQ(config_with(R"("allgather_size": 77, "zero_optimization": true)").zero.allgather_bucket_numel, 77);
  EXPECT_EQ(zero_with(R"("stage": 1, "cpu_offload": false, "cpu_offload_use_pin_memory": true)").stage, 1);
}

TEST(Config, offload_and_its_deprecated_forms) {
  const Zero cpu = zero_with(R"("stage": 3, "offload_optimizer": {"device": "cpu", "ratio": 0.25, "pin_memory": false},
      "offload_param": {"device": "CPU", "buffer_count": 9})");
  EXPECT_EQ(cpu.offload, (Offload{.optimizer = OffloadDevice::kCpu,
                                  .optimizer_ratio = 0.25,
                                  .pin_optimizer = false,
                                  .parameters = OffloadDevice::kCpu,
                                  .parameter_buffers = 9}));
  const Zero old = zero_with(R"("stage": 3, "cpu_offload": true, "cpu_offload_param": true)");
  EXPECT_EQ(old.offload, (Offload{.optimizer = OffloadDevice::kCpu, .parameters = OffloadDevice::kCpu}));
  EXPECT_EQ(zero_with(R"("stage": 2, "offload_optimizer": {"device": "none", "ratio": 0.5})").offload.optimizer,
            OffloadDevice::kNone);
}

TEST(Config, one_folder_or_several_on_nvme) {
  const auto offload = [](const std::string& path) {
    return zero_with(R"("stage": 2, "offload_optimizer": {"device": "nvme", "nvme_path": )" + path + "}").offload;
  };
  EXPECT_EQ(offload(R"("/a")").optimizer_folders, std::vector<std::string>{"/a"});
  EXPECT_EQ(offload(R"(["/a", "/b"])").optimizer_folders, (std::vector<std::string>{"/a", "/b"}));
  EXPECT_EQ(offload(R"("/a", "buffer_count": 7)").optimizer_buffers, 7);
  const auto both = zero_with(R"("stage": 3, "offload_optimizer": {"device": "cpu"},
      "offload_param": {"device": "nvme", "nvme_path": ["/a", "/b"], "max_in_cpu": 5})");
  EXPECT_EQ(both.offload.parameter_folders, (std::vector<std::string>{"/a", "/b"}));
  EXPECT_EQ(both.offload.max_numel_in_cpu, 5);
  EXPECT_EQ(offload(R"("/a")").optimizer, OffloadDevice::kNvme);
}

TEST(Config, adam_means_adamw_unless_told) {
  const auto optimizer = [](const std::string& text) { return config_with(R"("optimizer": )" + text).optimizer; };
  EXPECT_TRUE(optimizer(R"({"type": "Adam"})").params.decoupled_decay);
  EXPECT_FALSE(optimizer(R"({"type": "adam", "params": {"adam_w_mode": false}})").params.decoupled_decay);
  const Optimizer all = optimizer(R"({"type": "Adam", "params": {"lr": 1, "betas": [0.5, 0.25], "eps": 1e-6,
      "weight_decay": 0.1, "bias_correction": false, "torch_adam": true, "amsgrad": false}})");
  EXPECT_EQ(all, (Optimizer{OptimizerKind::kAdam, {1.0, 0.5, 0.25, 1e-6, 0.1, false, true}}));
}

TEST(Config, every_schedule) {
  const Schedule warmup =
      schedule_with("WarmupLR", R"("warmup_min_lr": 0.1, "warmup_max_lr": 0.2, "warmup_num_steps": 5,
      "warmup_type": "linear", "last_batch_iteration": 3)");
  EXPECT_EQ(warmup.kind, ScheduleKind::kWarmup);
  EXPECT_EQ(warmup.warmup_min_lr, 0.1);
  EXPECT_EQ(warmup.warmup_max_lr, 0.2);
  EXPECT_EQ(warmup.warmup_num_steps, 5);
  EXPECT_TRUE(warmup.warmup_linear);
  EXPECT_EQ(warmup.last_batch_iteration, 3);
  EXPECT_FALSE(schedule_with("WarmupLR", "").warmup_max_lr.has_value());

  const Schedule decay = schedule_with("WarmupDecayLR", R"("total_num_steps": 100)");
  EXPECT_EQ(decay.kind, ScheduleKind::kWarmupDecay);
  EXPECT_EQ(decay.total_num_steps, 100);
  EXPECT_FALSE(decay.warmup_max_lr.has_value());

  const Schedule cosine =
      schedule_with("WarmupCosineLR", R"("total_num_steps": 9, "warmup_min_ratio": 0.1, "cos_min_ratio": 0.2)");
  EXPECT_EQ(cosine.kind, ScheduleKind::kWarmupCosine);
  EXPECT_EQ(cosine.total_num_steps, 9);
  EXPECT_EQ(cosine.warmup_min_ratio, 0.1);
  EXPECT_EQ(cosine.cos_min_ratio, 0.2);

  const Schedule range = schedule_with("LRRangeTest", R"("lr_range_test_min_lr": 0.1, "lr_range_test_step_size": 2,
      "lr_range_test_step_rate": 3, "lr_range_test_staircase": true)");
  EXPECT_EQ(range.kind, ScheduleKind::kLrRangeTest);
  EXPECT_EQ(range.range_test_min_lr, 0.1);
  EXPECT_EQ(range.range_test_step_size, 2);
  EXPECT_EQ(range.range_test_step_rate, 3.0);
  EXPECT_TRUE(range.range_test_staircase);
}

TEST(Config, one_cycle) {
  const Schedule cycle = schedule_with("OneCycle", R"("cycle_min_lr": 0.1, "cycle_max_lr": 0.2, "decay_lr_rate": 0.3,
      "cycle_first_step_size": 4, "cycle_second_step_size": 5, "cycle_first_stair_count": 6, "cycle_second_stair_count": 7,
      "decay_step_size": 8, "cycle_momentum": false, "cycle_min_mom": 0.85, "cycle_max_mom": 0.95, "decay_mom_rate": 0.4)");
  EXPECT_EQ(cycle.kind, ScheduleKind::kOneCycle);
  EXPECT_EQ(cycle.cycle_min_lr, 0.1);
  EXPECT_EQ(cycle.cycle_max_lr, 0.2);
  EXPECT_EQ(cycle.decay_lr_rate, 0.3);
  EXPECT_EQ(cycle.cycle_first_step_size, 4);
  EXPECT_EQ(cycle.cycle_second_step_size, 5);
  EXPECT_EQ(cycle.cycle_first_stair_count, 6);
  EXPECT_EQ(cycle.cycle_second_stair_count, 7);
  EXPECT_EQ(cycle.decay_step_size, 8);
  EXPECT_FALSE(cycle.cycle_momentum);
  EXPECT_EQ(cycle.cycle_min_mom, 0.85);
  EXPECT_EQ(cycle.cycle_max_mom, 0.95);
  EXPECT_EQ(cycle.decay_mom_rate, 0.4);
  const Schedule minimal = schedule_with("OneCycle", R"("cycle_min_lr": 0.1, "cycle_max_lr": 0.2)");
  EXPECT_FALSE(minimal.cycle_second_step_size.has_value());
}

TEST(Config, other_keys) {
  const Config config = config_with(R"("steps_per_print": 10, "dump_state": true, "dataloader_drop_last": true,
      "zero_allow_untested_optimizer": true, "zeropage": {"page_numel": 1, "timeout_ms": 2, "communicator": "c10d",
      "deterministic_reduction": false, "observe_functions": false, "max_consecutive_skips": 3,
      "offloaded_update": "host"})");
  EXPECT_EQ(config.steps_per_print, 10);
  EXPECT_TRUE(config.dump_state && config.dataloader_drop_last && config.allow_untested_optimizer);
  EXPECT_EQ(config.zeropage, (ZeropageKeys{.page_numel = 1,
                                           .timeout_ms = 2,
                                           .communicator = CommunicatorKind::kC10d,
                                           .deterministic_reduction = false,
                                           .observe_functions = false,
                                           .max_consecutive_skips = 3,
                                           .offloaded_update = UpdatePlace::kHost}));
}

TEST(Config, auto_that_nothing_filled_in_is_the_default) {
  const std::string keys = R"("scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": "auto"}},
      "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto"}}, "fp16": {"enabled": "auto"},
      "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": "auto"})";
  const Config config = config_with(keys);
  EXPECT_EQ(config.zero.persistence_threshold_numel, 100'000);
  EXPECT_EQ(config.schedule.warmup_num_steps, 1000);
  EXPECT_EQ(config.optimizer.params, OptimizerParams{});
  EXPECT_EQ(config.precision, Precision::kFp32);
  const auto lines = notes("{" + keys + "}", "config");
  ASSERT_EQ(lines.size(), 6u);
  EXPECT_NE(lines[0].find("config:"), std::string::npos);
  for (std::size_t i = 0; i < 5; ++i)
    EXPECT_NE(lines[i].find("nothing filled in the value \"auto\""), std::string::npos) << lines[i];
}

TEST(Config, sizes_with_a_fraction_are_rounded_down) {
  const std::string keys = R"("gradient_clipping": 1, "zero_optimization": {"stage3_prefetch_bucket_size": 3686.4,
      "reduce_bucket_size": 1.5})";
  EXPECT_EQ(config_with(keys).zero.prefetch_bucket_numel, 3686);
  EXPECT_EQ(config_with(keys).zero.reduce_bucket_numel, 1);
  const auto lines = notes("{" + keys + "}", "config");
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_NE(lines[0].find("rounded down to 3686"), std::string::npos) << lines[0];
}

TEST(Config, dotted_keys_at_the_top_level_go_before_the_section) {
  const std::string keys =
      R"("gradient_clipping": 1, "zero_optimization.reduce_bucket_size": 4096, "zero_optimization": {"stage": 3,
      "reduce_bucket_size": 9, "stage3_prefetch_bucket_size": 7}, "zero_optimization.stage3_prefetch_bucket_size": 3686.4)";
  const Config config = config_with(keys);
  EXPECT_EQ(config.zero.reduce_bucket_numel, 4096);
  EXPECT_EQ(config.zero.prefetch_bucket_numel, 3686);
  EXPECT_EQ(config.zero.stage, 3);
  EXPECT_EQ(config_with(R"("optimizer.params.lr": 0.5, "optimizer": {"type": "SGD"})").optimizer.params.lr, 0.5);
  const auto lines = notes("{" + keys + "}", "config");
  ASSERT_EQ(lines.size(), 3u);
  EXPECT_NE(lines[0].find("sets that key instead of 9"), std::string::npos) << lines[0];
}

// Catches a key without effect that is accepted without a message, and a separate line for every key that only repeats
// a default.
TEST(Config, keys_without_effect_are_said) {
  const auto lines = notes(R"({"gradient_clipping": 1, "zero_optimization": {"contiguous_gradients": true,
      "sub_group_size": 1e6, "leaf_module": {"classes": ["Experts"]}, "allgather_partitions": true,
      "offload_param": {"device": "none", "buffer_size": 7}}})",
                           "config");
  ASSERT_EQ(lines.size(), 3u);
  EXPECT_EQ(lines[0],
            "config:2: zero_optimization.sub_group_size: 1000000 has no effect: The update runs page by page, never "
            "over a larger group.");
  EXPECT_NE(lines[1].find(R"(zero_optimization.leaf_module.classes: ["Experts"] has no effect: )"), std::string::npos);
  EXPECT_NE(lines[2].find("as by default: zero_optimization.contiguous_gradients, "
                          "zero_optimization.allgather_partitions;"),
            std::string::npos)
      << lines[2];
}

// Catches a default that differs from DeepSpeed's without a message, and a message although the value was given.
TEST(Config, absent_clipping_is_said) {
  const auto lines = notes("{}", "config");
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_NE(lines[0].find(R"(config: gradient_clipping is absent)"), std::string::npos) << lines[0];
  EXPECT_NE(lines[0].find(R"(write "gradient_clipping": 1.0)"), std::string::npos) << lines[0];
  EXPECT_TRUE(notes(R"({"gradient_clipping": 0})", "config").empty());
  EXPECT_TRUE(notes(R"({"zero_optimization": {"compute_grad_norm": false}})", "config").empty());
}

TEST(Config, odd_vocabularies_are_said) {
  const auto lines = notes(R"({"gradient_clipping": 0, "vocabulary_size": 50257})", "config");
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_NE(lines[0].find("config:1: vocabulary_size: 50257 is not a multiple of 8"), std::string::npos);
  EXPECT_NE(lines[0].find("padded to 50264"), std::string::npos);
  EXPECT_TRUE(notes(R"({"gradient_clipping": 0, "vocabulary_size": 50264})", "config").empty());
}

TEST(Config, keys_of_the_process_and_the_window) {
  const Config config = config_with(R"("managed_gradient_accumulation": false, "log_level": "WARN",
      "disable_python_gc": true, "zero_optimization": {"compute_grad_norm": false})");
  EXPECT_FALSE(config.batch.counted);
  EXPECT_EQ(config.log_level, "warning");
  EXPECT_TRUE(config.disable_python_gc);
  EXPECT_FALSE(config.gradients.norm);
  EXPECT_TRUE(config_with("").batch.counted);
}

TEST(Config, null_infinity_and_comments) {
  EXPECT_FALSE(config_with(R"("steps_per_print": Infinity)").steps_per_print.has_value());
  EXPECT_TRUE(zero_with(R"("overlap_comm": null, "offload_param": null)").overlap_comm);
  EXPECT_EQ(config_with("// one\n/* two */ \"optimizer\": null # three\n").optimizer.kind, OptimizerKind::kNone);
}

TEST(Config, sections_that_are_off_may_say_anything_valid) {
  EXPECT_NO_THROW(
      config_with(R"("tensorboard": {"enabled": false, "output_path": "logs"}, "flops_profiler": {"profile_step": 9},
      "amp": {"enabled": false, "opt_level": "O1"}, "fp16": {"enabled": false, "fp16_master_weights_and_grads": true})"));
  EXPECT_NO_THROW(
      zero_with(R"("stage": 3, "offload_param": {"device": "none", "pin_memory": false, "buffer_count": 9})"));
}

// Catches an "auto" stage that trains as stage 0, or a plan that the printed configuration does not show.
TEST(Config, AutomaticStageWaitsForThePlan) {
  const auto config = Config::from_json(R"({"train_batch_size": 8, "zero_optimization": {"stage": "auto"}})", 2);
  EXPECT_EQ(config.automatic, std::vector<std::string>{"zero_optimization.stage"});
  EXPECT_NE(config.effective_json.find(R"("stage": "auto")"), std::string::npos);
  const auto planned = config.with_planned({{"zero_optimization.stage", 3}});
  EXPECT_EQ(planned.zero.stage, 3);
  EXPECT_TRUE(planned.automatic.empty());
  EXPECT_NE(planned.effective_json.find(R"("stage": 3)"), std::string::npos);
  EXPECT_THROW(Config::from_json(R"({"train_batch_size": 8, "zero_optimization": {"stage": "automatic"}})", 2),
               ConfigError);
}

// Catches "auto" that trains with the default, or that the plan cannot replace by a text.
TEST(Config, AutomaticDevicesAndBucketsWaitForThePlan) {
  const auto config = config_with(
      R"("zero_optimization": {"stage": "auto", "offload_optimizer": {"device": "auto"}, "offload_param": {"device": "auto"},
      "reduce_bucket_size": "auto", "stage3_max_live_parameters": "auto"})");
  EXPECT_EQ(config.automatic.size(), 5u);
  EXPECT_EQ(config.zero.reduce_bucket_numel, Zero{}.reduce_bucket_numel);
  const auto planned = config.with_planned({{"zero_optimization.stage", 3},
                                            {"zero_optimization.offload_param.device", "cpu"},
                                            {"zero_optimization.offload_optimizer.device", "cpu"},
                                            {"zero_optimization.reduce_bucket_size", 77},
                                            {"zero_optimization.stage3_max_live_parameters", 88}});
  EXPECT_TRUE(planned.automatic.empty());
  EXPECT_EQ(planned.zero.offload.parameters, OffloadDevice::kCpu);
  EXPECT_EQ(planned.zero.offload.optimizer, OffloadDevice::kCpu);
  EXPECT_EQ(planned.zero.reduce_bucket_numel, 77);
  EXPECT_EQ(planned.zero.max_live_numel, 88);
  EXPECT_NO_THROW(zero_with(R"("stage": "auto", "offload_param": {"device": "cpu"})")) << "the plan will choose 3";
}

// Catches combinations that would train wrong in groups, a group of all ranks that is refused or treated as one of
// several, and MiCS's key without effect.
TEST(Config, GroupsOfRanks) {
  const auto shard_ranks = [](const std::string& zero, const std::string& own, int world) {
    const std::string text =
        R"({"train_batch_size": 8, "zero_optimization": {"stage": 3)" + zero + R"(}, "zeropage": {)" + own + "}}";
    return Config::from_json(text, world).zero.shard_ranks;
  };
  const std::string two = R"("shard_ranks": 2)";
  EXPECT_EQ(shard_ranks("", "", 4), 0);
  EXPECT_EQ(shard_ranks("", two, 4), 2);
  EXPECT_EQ(shard_ranks("", two, 2), 0);  // one group
  EXPECT_EQ(shard_ranks("", two, 0), 2);  // not known yet
  EXPECT_EQ(shard_ranks(R"(, "mics_shard_size": 2)", "", 4), 2);
  EXPECT_EQ(shard_ranks(R"(, "mics_shard_size": 2)", two, 4), 2);
  EXPECT_EQ(shard_ranks(R"(, "mics_shard_size": -1)", "", 4), 0);
  const std::string second = R"(, "zero_hpz_partition_size": 2)";
  EXPECT_EQ(shard_ranks(second, two, 2), 0);
  EXPECT_THROW(shard_ranks(second, two, 4), ConfigError);
  EXPECT_THROW(shard_ranks(R"(, "zero_quantized_gradients": true)", two, 4), ConfigError);
  EXPECT_THROW(shard_ranks("", R"("shard_ranks": 8)", 4), ConfigError);
}

}  // namespace
}  // namespace zeropage::config
