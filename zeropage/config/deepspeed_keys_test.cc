/// Every key that DeepSpeed 0.19.8 reads, with a value of its type. Catches a key that is unknown here, so that a valid
/// file of DeepSpeed is refused as if a key were misspelt.
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <sstream>

#include "zeropage/config/explain.h"

namespace zeropage::config {
namespace {

using Json = nlohmann::json;

/// "name=value name=value": values are JSON without spaces.
struct KeysOfSection {
  const char* section;
  const char* keys;
};

constexpr KeysOfSection kKeys[] = {
    {"",
     "train_batch_size=8 train_micro_batch_size_per_gpu=1 gradient_accumulation_steps=1 data_parallel_size=2 "
     "sequence_parallel_size=1 managed_gradient_accumulation=false steps_per_print=10 wall_clock_breakdown=true "
     "memory_breakdown=true dump_state=true log_level=\"info\" disable_python_gc=true dataloader_drop_last=true "
     "vocabulary_size=8 graph_harvesting=true communication_data_type=\"fp16\" prescale_gradients=true "
     "seq_parallel_communication_data_type=\"bf16\" gradient_clipping=1.0 gradient_predivide_factor=2.0 "
     "gradient_allreduce_op=\"sum\" sparse_gradients=true disable_allgather=true allgather_size=100 "
     "zero_allow_untested_optimizer=true zero_force_ds_cpu_optimizer=false "
     "use_data_before_expert_parallelism=true amp={\"enabled\":true} nebula={\"enabled\":true} "
     "datastates_ckpt={\"host_cache_size\":1} pipeline={\"stages\":2} tensor_parallel={\"autotp_size\":2} "
     "expert_parallel={\"enabled\":true} hybrid_engine={\"enabled\":true} sparse_attention={\"mode\":\"fixed\"} "
     "curriculum_learning={\"enabled\":true} data_efficiency={\"enabled\":true} "
     "progressive_layer_drop={\"enabled\":true} eigenvalue={\"enabled\":true} quantize_training={\"enabled\":true} "
     "compression_training={\"layer_reduction\":{}} weight_quantization={\"enabled\":true}"},
    {"data_types", "grad_accum_dtype=\"fp32\" param_dtype=\"bf16\" buffer_dtype=\"fp32\" keep_in_fp32_modules=[]"},
    {"fp16",
     "enabled=true auto_cast=true loss_scale=0 initial_scale_power=16 loss_scale_window=1000 hysteresis=2 "
     "consecutive_hysteresis=true min_loss_scale=1 fp16_master_weights_and_grads=true"},
    {"bf16",
     "enabled=true immediate_grad_update=true check_grad_overflow=false bf16_master_weights_and_grads=true "
     "bf16_optimizer_states=true"},
    {"bfloat16", "enabled=true"},
    {"torch_autocast", "enabled=true dtype=\"bfloat16\" lower_precision_safe_modules=[\"torch.nn.Linear\"]"},
    {"optimizer", "type=\"AdamW\" legacy_fusion=true"},
    {"scheduler", "type=\"WarmupLR\""},
    {"zero_optimization",
     "stage=3 contiguous_gradients=true reduce_scatter=true reduce_bucket_size=5e8 "
     "use_multi_rank_bucket_allreduce=true "
     "allgather_partitions=true allgather_bucket_size=5e8 overlap_comm=true load_from_fp32_weights=true "
     "elastic_checkpoint=true sub_group_size=1e9 stage3_prefetch_bucket_size=5e7 prefetch_bucket_size=5e7 "
     "stage3_param_persistence_threshold=1e5 param_persistence_threshold=1e5 "
     "stage3_model_persistence_threshold=1e9 model_persistence_threshold=1e9 stage3_max_live_parameters=1e9 "
     "max_live_parameters=1e9 stage3_max_reuse_distance=1e9 max_reuse_distance=1e9 "
     "stage3_gather_16bit_weights_on_model_save=true gather_16bit_weights_on_model_save=true "
     "stage3_gather_fp16_weights_on_model_save=true stage3_module_granularity_threshold=0 "
     "module_granularity_threshold=0 stage3_use_all_reduce_for_fetch_params=true use_all_reduce_for_fetch_params=true "
     "stage3_allgather_sequential=true allgather_sequential=true ignore_unused_parameters=false legacy_stage1=true "
     "round_robin_gradients=true zero_hpz_partition_size=2 zero_quantized_weights=true "
     "zero_quantized_nontrainable_weights=true zero_quantized_gradients=true mics_shard_size=2 "
     "mics_hierarchical_params_gather=true memory_efficient_linear=false pipeline_loading_checkpoint=true "
     "override_module_apply=false log_trace_cache_warnings=true enable_sanity_checks=true "
     "save_muon_momentum_buffer_in_memory=true compute_grad_norm=false parameter_alignment=true cpu_offload=true "
     "cpu_offload_param=true cpu_offload_use_pin_memory=true"},
    {"zero_optimization.zeropp_loco_param", "err_beta=0.8 reset_T=1024"},
    {"zero_optimization.leaf_module", "classes=[\"A\"] names=[\"b\"] name_suffixes=[\"c\"]"},
    {"zero_optimization.offload_param",
     "device=\"cpu\" nvme_path=\"/nvme\" buffer_count=5 buffer_size=1e8 max_in_cpu=1e9 pin_memory=true"},
    {"zero_optimization.offload_optimizer",
     "device=\"cpu\" nvme_path=\"/nvme\" buffer_count=4 pin_memory=true pipeline_read=true pipeline_write=true "
     "fast_init=true ratio=0.5 super_offload=true cpuadam_cores_perc=0.9"},
    {"zero_optimization.zenflow",
     "topk_ratio=0.1 select_strategy=\"auto\" select_interval=\"auto\" update_interval=\"auto\" overlap_step=true "
     "offload=true auto_ratio=0.99 full_warm_up_rounds=0 pt_reserved_cores_perc=0.5"},
    {"aio",
     "block_size=1048576 queue_depth=8 intra_op_parallelism=1 thread_count=1 single_submit=true "
     "overlap_events=true use_gds=true"},
    {"checkpoint",
     "tag_validation=\"Fail\" load_universal=true use_node_local_storage=true "
     "checkpoint_serialization=false"},
    {"checkpoint.parallel_write", "pipeline_stage=true"},
    {"checkpoint.writer",
     "type=\"FAST\" decoupled=true io_buffer_size=1024 io_buffer_double=false "
     "show_statistics=true data_parallel=\"socket\" io_multiplier=2"},
    {"activation_checkpointing",
     "partition_activations=true number_checkpoints=4 contiguous_memory_optimization=true "
     "synchronize_checkpoint_boundary=true profile=true cpu_checkpointing=true"},
    {"timers.throughput", "enabled=true synchronized=true"},
    {"comms_logger", "enabled=true verbose=true prof_all=true prof_ops=[] debug=true"},
    {"flops_profiler",
     "enabled=true recompute_fwd_factor=0.0 profile_step=1 module_depth=-1 top_modules=1 "
     "detailed=true output_file=\"f\""},
    {"tensorboard", "enabled=true output_path=\"p\" job_name=\"j\""},
    {"wandb", "enabled=true group=\"g\" team=\"t\" project=\"p\""},
    {"csv_monitor", "enabled=true output_path=\"p\" job_name=\"j\""},
    {"comet",
     "enabled=true samples_log_interval=100 project=\"p\" workspace=\"w\" api_key=\"k\" "
     "experiment_name=\"n\" experiment_key=\"k\" online=true mode=\"get\""},
    {"elasticity",
     "enabled=true max_train_batch_size=2000 micro_batch_sizes=[2,4] min_gpus=1 max_gpus=8 min_time=0 "
     "prefer_larger_batch=true ignore_non_elastic_batch_info=false version=0.2 model_parallel_size=1 "
     "num_gpus_per_node=1"},
    {"autotuning",
     "enabled=true fast=true results_dir=\"r\" exps_dir=\"e\" overwrite=true start_profile_step=3 end_profile_step=5 "
     "metric=\"latency\" metric_path=\"m\" tuner_type=\"random\" tuner_early_stopping=5 tuner_num_trials=50 "
     "arg_mappings={} model_info_path=\"i\" mp_size=1 max_train_batch_size=8 min_train_batch_size=1 "
     "max_train_micro_batch_size_per_gpu=8 min_train_micro_batch_size_per_gpu=1 num_tuning_micro_batch_sizes=3"},
    {"autotuning.model_info", "profile=true num_params=1 hidden_size=1 num_layers=1"},
    {"compile",
     "deepcompile=true free_activation=true free_activation_threshold=1 offload_activation=true "
     "offload_opt_states=true offload_parameters=true symmetric_memory=true debug_log=true "
     "sync_before_reduce=true sync_after_reduce=true sync_before_allgather=true sync_after_allgather=true "
     "double_buffer=true keep_int_input_tensors=true offload_activation_pin_memory=true passes=[\"z3\"]"},
};

/// Parameters of optimizers and schedules, by type.
constexpr KeysOfSection kParameters[] = {
    {"optimizer.Adam",
     "lr=1e-3 betas=[0.9,0.999] eps=1e-8 weight_decay=0.1 bias_correction=true amsgrad=true "
     "torch_adam=true adam_w_mode=true fp32_optimizer_states=true max_grad_norm=1.0"},
    {"optimizer.Adagrad", "lr=1e-3 eps=1e-8 weight_decay=0.1 amsgrad=false"},
    {"optimizer.Lamb",
     "lr=1e-3 betas=[0.9,0.999] eps=1e-8 eps_inside_sqrt=true weight_decay=0.1 bias_correction=true "
     "max_coeff=10 min_coeff=0.01 amsgrad=false max_grad_norm=1.0"},
    {"optimizer.Lion", "lr=1e-3 betas=[0.9,0.99] weight_decay=0.1"},
    {"optimizer.Muon",
     "lr=0.02 muon_lr=0.02 adam_lr=3e-4 momentum=0.95 weight_decay=0.1 ns_method=\"gram\" "
     "betas=[0.9,0.95] eps=1e-10 per_head_muon=true adam_w_mode=true torch_adam=true"},
    {"scheduler.LRRangeTest",
     "lr_range_test_min_lr=1e-3 lr_range_test_step_size=2000 lr_range_test_step_rate=1.0 "
     "lr_range_test_staircase=true last_batch_iteration=-1"},
    {"scheduler.OneCycle",
     "cycle_min_lr=0.1 cycle_max_lr=0.2 decay_lr_rate=0 cycle_first_step_size=2000 cycle_second_step_size=1 "
     "cycle_first_stair_count=0 cycle_second_stair_count=1 decay_step_size=0 cycle_momentum=true cycle_min_mom=0.8 "
     "cycle_max_mom=0.9 decay_mom_rate=0 last_batch_iteration=-1"},
    {"scheduler.WarmupLR",
     "warmup_min_lr=0 warmup_max_lr=0.1 warmup_num_steps=1000 warmup_type=\"linear\" "
     "last_batch_iteration=-1"},
    {"scheduler.WarmupDecayLR",
     "total_num_steps=9 warmup_min_lr=0 warmup_max_lr=0.1 warmup_num_steps=1000 "
     "warmup_type=\"linear\" last_batch_iteration=-1"},
    {"scheduler.WarmupCosineLR",
     "total_num_steps=9 warmup_min_ratio=0 warmup_num_steps=1000 cos_min_ratio=1e-4 "
     "warmup_type=\"log\" last_batch_iteration=-1"},
};

Json object_of(const std::string& keys) {
  Json object = Json::object();
  std::istringstream words(keys);
  for (std::string word; words >> word;) {
    const std::size_t equals = word.find('=');
    object[word.substr(0, equals)] = Json::parse(word.substr(equals + 1));
  }
  return object;
}

/// One document for each key, since some exclude each other.
void expect_known(const Json::json_pointer& section, const std::string& keys, const Json& required) {
  const Json values = object_of(keys);
  for (const auto& [name, value] : values.items()) {
    Json document = required;
    document[section / name] = value;
    const Explanation explanation = explain(document.dump(), "keys", 0);
    EXPECT_FALSE(explanation.keys.empty()) << document;
    for (const ExplainedKey& key : explanation.keys) {
      EXPECT_EQ(key.text.find("expected a known key"), std::string::npos) << document << "\n" << key.text;
      if (key.verdict != Verdict::kRefused) continue;
      const bool by_choice = key.text.find("not available in this version") != std::string::npos ||
                             required.contains("scheduler") || key.path == "allgather_size" ||
                             key.path.find("nvme") != std::string::npos;
      EXPECT_TRUE(by_choice) << document << "\n" << key.text;
    }
  }
}

TEST(DeepSpeedKeys, none_is_unknown) {
  for (const KeysOfSection& keys : kKeys) {
    std::string path = keys.section;
    std::ranges::replace(path, '.', '/');
    Json required = Json::object();
    if (path.starts_with("zero_optimization")) required["zero_optimization"]["stage"] = 3;
    expect_known(Json::json_pointer(path.empty() ? "" : "/" + path), keys.keys, required);
  }
}

TEST(DeepSpeedKeys, no_parameter_is_unknown) {
  for (const KeysOfSection& keys : kParameters) {
    const std::string path = keys.section;
    const std::string section = path.substr(0, path.find('.'));
    const Json required = {{section, {{"type", path.substr(path.find('.') + 1)}}}};
    expect_known(Json::json_pointer("/" + section + "/params"), keys.keys, required);
  }
}

}  // namespace
}  // namespace zeropage::config
