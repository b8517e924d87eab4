#include "zeropage/config/config.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <set>

#include "zeropage/base/error.h"
#include "zeropage/base/json_text.h"
#include "zeropage/base/read_file.h"
#include "zeropage/config/batch.h"
#include "zeropage/config/check.h"
#include "zeropage/config/effective.h"
#include "zeropage/config/optimizers.h"
#include "zeropage/config/read_optimizer.h"
#include "zeropage/config/shard_ranks.h"

namespace zeropage::config {
namespace {

std::optional<DType> dtype_of(const std::optional<std::string>& name) {
  if (!name) return std::nullopt;
  if (*name == "bf16") return DType::kBFloat16;
  return *name == "fp16" ? DType::kFloat16 : DType::kFloat32;
}

std::vector<std::string> read_automatic(const Settings& settings) {
  std::vector<std::string> paths;
  for (const auto& setting : settings.all()) {
    if (is_automatic(setting)) paths.push_back(setting.path);
  }
  return paths;
}

/// The value of a key, or its default while it is "auto" without a planned value.
std::int64_t read_size(const Settings& settings, const std::string& path) {
  const Setting& setting = settings.at(path);
  return std::get<std::int64_t>(is_automatic(setting) ? setting.key->default_value : setting.value);
}

Precision read_precision(const Settings& settings) {
  const bool fp16 = settings.flag("fp16.enabled");
  const bool bf16 = settings.flag("bf16.enabled");
  if (fp16 && bf16) settings.fail("bf16.enabled", "expected fp16 or bf16, got both enabled; disable one");
  const auto given = settings.optional<std::string>("data_types.param_dtype");
  const std::string name = fp16 ? "fp16" : bf16 ? "bf16" : given.value_or("fp32");
  if (given && *given != name) {
    settings.fail("data_types.param_dtype",
                  fmt::format("expected \"{}\", the enabled precision, got \"{}\"; remove the key, or enable {}", name,
                              *given, *given == "fp32" ? "neither fp16 nor bf16" : *given));
  }
  return name == "fp16" ? Precision::kFp16 : name == "bf16" ? Precision::kBf16 : Precision::kFp32;
}

DataTypes read_data_types(const Settings& settings) {
  DataTypes types;
  types.named = settings.flag("fp16.enabled") || settings.flag("bf16.enabled") ||
                settings.flag("torch_autocast.enabled") ||
                settings.optional<std::string>("data_types.param_dtype").has_value();
  types.buffers = dtype_of(settings.optional<std::string>("data_types.buffer_dtype"));
  types.in_fp32 = settings.strings("data_types.keep_in_fp32_modules");
  types.declared_in_fp32 = types.in_fp32 == std::vector<std::string>{"auto"};
  if (types.declared_in_fp32) types.in_fp32.clear();
  return types;
}

std::optional<DType> read_autocast(const Settings& settings, Precision precision) {
  if (!settings.flag("torch_autocast.enabled")) return std::nullopt;
  if (precision != Precision::kFp32) {
    settings.fail("torch_autocast.enabled",
                  "expected fp16 and bf16 disabled, because they cast the model itself; disable one");
  }
  return settings.optional<std::string>("torch_autocast.dtype").value_or("bf16") == "fp16" ? DType::kFloat16
                                                                                           : DType::kBFloat16;
}

LossScale read_loss_scale(const Settings& settings) {
  LossScale scale;
  const double fixed = settings.real("fp16.loss_scale");
  scale.dynamic = fixed == 0;
  scale.static_scale = scale.dynamic ? 1.0 : fixed;
  scale.initial_power = static_cast<int>(settings.integer("fp16.initial_scale_power"));
  scale.window = settings.integer("fp16.loss_scale_window");
  scale.hysteresis = static_cast<int>(settings.integer("fp16.hysteresis"));
  scale.consecutive_hysteresis = settings.flag("fp16.consecutive_hysteresis");
  scale.min_scale = settings.real("fp16.min_loss_scale");
  return scale;
}

Gradients read_gradients(const Settings& settings, Precision precision) {
  Gradients gradients;
  gradients.clipping = settings.real("gradient_clipping");
  gradients.prescale = settings.flag("prescale_gradients");
  gradients.predivide_factor = settings.real("gradient_predivide_factor");
  gradients.sum_instead_of_mean = settings.string("gradient_allreduce_op") == "sum";
  gradients.accumulation_dtype = dtype_of(settings.optional<std::string>("data_types.grad_accum_dtype"));
  gradients.communication_dtype = dtype_of(settings.optional<std::string>("communication_data_type"));
  gradients.check_overflow = precision != Precision::kBf16 || settings.flag("bf16.check_grad_overflow");
  const std::string norm = "zero_optimization.compute_grad_norm";
  gradients.norm = settings.flag(norm);
  if (!gradients.norm && gradients.clipping > 0) {
    settings.fail(
        norm, fmt::format("expected true together with gradient_clipping {}, which needs the norm, got false; remove "
                          "this key, or set gradient_clipping to 0",
                          gradients.clipping));
  }
  return gradients;
}

/// The device of `section`, which `deprecated` (a flag of zero_optimization) may also set.
OffloadDevice read_device(const Settings& settings, const std::string& section, const std::string& deprecated) {
  const std::string path = "zero_optimization." + section + ".device";
  const std::string& device = settings.string(path);
  const std::string old = "zero_optimization." + deprecated;
  if (!settings.flag(old)) {
    return device == "cpu" ? OffloadDevice::kCpu : device == "nvme" ? OffloadDevice::kNvme : OffloadDevice::kNone;
  }
  if (settings.at(path).source == Source::kDocument) {
    settings.fail(old, fmt::format("expected this deprecated key or {}, got both; remove this one", path));
  }
  return OffloadDevice::kCpu;
}

Offload read_offload(const Settings& settings, int stage) {
  const auto key = [](const std::string& name) { return "zero_optimization." + name; };
  const auto folders = [&](const std::string& section, OffloadDevice device) {
    auto names = settings.strings(key(section + ".nvme_path"));
    if (device == OffloadDevice::kNvme && names.empty()) {
      settings.fail(key(section + ".nvme_path"),
                    "expected a folder on the drive, as the device is \"nvme\", got none; name one, or a list of "
                    "folders on several drives");
    }
    return names;
  };
  const bool stage_is_known = !is_automatic(settings.at(key("stage")));
  Offload offload;
  offload.optimizer = read_device(settings, "offload_optimizer", "cpu_offload");
  offload.optimizer_ratio = settings.real(key("offload_optimizer.ratio"));
  offload.pin_optimizer = settings.flag(key("offload_optimizer.pin_memory"));
  offload.optimizer_folders = folders("offload_optimizer", offload.optimizer);
  offload.optimizer_buffers = settings.integer(key("offload_optimizer.buffer_count"));
  offload.parameters = read_device(settings, "offload_param", "cpu_offload_param");
  offload.pin_parameters = settings.flag(key("offload_param.pin_memory"));
  offload.parameter_folders = folders("offload_param", offload.parameters);
  offload.parameter_buffers = settings.integer(key("offload_param.buffer_count"));
  offload.max_numel_in_cpu = settings.integer(key("offload_param.max_in_cpu"));
  if (offload.parameters != OffloadDevice::kNone && stage_is_known && stage != 3) {
    const bool deprecated = settings.flag(key("cpu_offload_param"));
    settings.fail(key(deprecated ? "cpu_offload_param" : "offload_param.device"),
                  fmt::format("expected zero_optimization.stage 3, where parameters are sharded, got {}; set the stage "
                              "to 3, or the device to \"none\"",
                              stage));
  }
  if (offload.parameters == OffloadDevice::kNvme && !is_automatic(settings.at(key("offload_optimizer.device"))) &&
      (offload.optimizer == OffloadDevice::kNone || offload.optimizer_ratio < 1.0)) {
    settings.fail(key("offload_param.device"),
                  "expected offload_optimizer with the device \"cpu\" or \"nvme\" and the ratio 1 for parameters on "
                  "\"nvme\", since they are updated on the host; add it, or set this device to \"cpu\"");
  }
  return offload;
}

/// Reads ZeRO++'s keys for communication with fewer bits.
void read_quantization(const Settings& settings, Zero& zero) {
  const auto key = [](const std::string& name) { return "zero_optimization." + name; };
  const bool stage_is_known = !is_automatic(settings.at(key("stage")));
  zero.quantized_weights = settings.flag(key("zero_quantized_weights"));
  zero.quantized_frozen_weights = settings.flag(key("zero_quantized_nontrainable_weights"));
  zero.quantized_gradients = settings.flag(key("zero_quantized_gradients"));
  for (const char* name : {"zero_quantized_weights", "zero_quantized_nontrainable_weights"}) {
    if (!settings.flag(key(name)) || !stage_is_known || zero.stage == 3) continue;
    settings.fail(key(name), fmt::format("expected zero_optimization.stage 3, where parameters are gathered, got {}; "
                                         "set the stage to 3, or remove this key",
                                         zero.stage));
  }
  if (!zero.quantized_gradients) return;
  if (stage_is_known && zero.stage == 0) {
    settings.fail(key("zero_quantized_gradients"),
                  "expected zero_optimization.stage 1, 2 or 3, where each rank sums a part of the gradients, got 0; "
                  "set another stage, or remove this key");
  }
  if (!zero.reduce_scatter) {
    settings.fail(key("zero_quantized_gradients"),
                  "expected reduce_scatter true, which sends gradients to their owners, got false; remove "
                  "one of the two keys");
  }
}

Zero read_zero(const Settings& settings) {
  const auto key = [](const char* name) { return std::string("zero_optimization.") + name; };
  Zero zero;
  zero.stage = static_cast<int>(read_size(settings, key("stage")));
  zero.reduce_scatter = settings.flag(key("reduce_scatter"));
  zero.overlap_comm = settings.flag(key("overlap_comm"));
  zero.reduce_bucket_numel = read_size(settings, key("reduce_bucket_size"));
  zero.allgather_bucket_numel = read_size(settings, key("allgather_bucket_size"));
  zero.prefetch_bucket_numel = read_size(settings, key("stage3_prefetch_bucket_size"));
  zero.persistence_threshold_numel = settings.integer(key("stage3_param_persistence_threshold"));
  zero.model_persistence_threshold_numel = settings.integer(key("stage3_model_persistence_threshold"));
  zero.max_live_numel = read_size(settings, key("stage3_max_live_parameters"));
  zero.max_reuse_distance_numel = settings.integer(key("stage3_max_reuse_distance"));
  zero.gather_16bit_weights_on_model_save = settings.flag(key("stage3_gather_16bit_weights_on_model_save"));
  read_quantization(settings, zero);
  zero.offload = read_offload(settings, zero.stage);
  zero.second_shard_ranks = read_second_shard_ranks(settings, zero);
  return zero;
}

StateDtype read_state_dtype(const Settings& settings, Precision precision, const Optimizer& optimizer) {
  const bool in_bf16 = precision == Precision::kBf16 && settings.flag("bf16.bf16_optimizer_states");
  const auto named = settings.optional<std::string>("zeropage.optimizer_state_dtype");
  const std::string name = named.value_or(in_bf16 ? "bf16" : "fp32");
  if (in_bf16 && name != "bf16") {
    settings.fail(
        "zeropage.optimizer_state_dtype",
        fmt::format("expected \"bf16\" because of bf16.bf16_optimizer_states, or no such key, got \"{}\"", name));
  }
  if (name == "fp32") return StateDtype::kFloat32;
  if (optimizer.kind == OptimizerKind::kClient) {
    settings.fail(
        in_bf16 ? "bf16.bf16_optimizer_states" : "zeropage.optimizer_state_dtype",
        fmt::format("expected an optimizer whose state Zeropage keeps ({}), got one that PyTorch runs, which keeps its "
                    "own",
                    optimizer_types()));
  }
  if (name == "int8" && optimizer.kind == OptimizerKind::kLamb) {
    // Lamb sums norms shard by shard. If one rank has all shards, the blocks of int8 do not end at the ends of shards.
    settings.fail("zeropage.optimizer_state_dtype", "expected \"fp32\" or \"bf16\" with Lamb, got \"int8\"");
  }
  return name == "bf16" ? StateDtype::kBFloat16 : StateDtype::kInt8;
}

UpdatePlace read_offloaded_update(const Settings& settings, const Offload& offload) {
  const std::string key = "zeropage.offloaded_update";
  const std::string& text = settings.string(key);
  if (text != "device") return text == "host" ? UpdatePlace::kHost : UpdatePlace::kAuto;
  if (offload.optimizer == OffloadDevice::kNvme || offload.parameters == OffloadDevice::kNvme) {
    settings.fail(
        key,
        "expected \"host\" or \"auto\" with zero_optimization.offload_optimizer or offload_param on \"nvme\", "
        "whose state is updated on the host, got \"device\"");
  }
  if (settings.optional<std::int64_t>("zeropage.speculation_bytes").value_or(0) > 0) {
    settings.fail(key,
                  "expected \"host\" or \"auto\" with zeropage.speculation_bytes, which is for updates on the host, "
                  "got \"device\"; remove one of the two");
  }
  return UpdatePlace::kDevice;
}

ZeropageKeys read_zeropage(const Settings& settings, const Offload& offload) {
  ZeropageKeys keys;
  keys.page_numel = settings.integer("zeropage.page_numel");
  keys.timeout_ms = settings.integer("zeropage.timeout_ms");
  const std::string& communicator = settings.string("zeropage.communicator");
  keys.communicator = communicator == "c10d"            ? CommunicatorKind::kC10d
                      : communicator == "shared_memory" ? CommunicatorKind::kSharedMemory
                      : communicator == "mpi"           ? CommunicatorKind::kMpi
                                                        : CommunicatorKind::kAuto;
  keys.deterministic_reduction = settings.flag("zeropage.deterministic_reduction");
  keys.hierarchical_collectives = settings.flag("zeropage.hierarchical_collectives");
  keys.observe_functions = settings.flag("zeropage.observe_functions");
  keys.max_consecutive_skips = settings.integer("zeropage.max_consecutive_skips");
  keys.async_save = settings.flag("zeropage.async_save");
  keys.speculation_bytes = settings.optional<std::int64_t>("zeropage.speculation_bytes");
  keys.offloaded_update = read_offloaded_update(settings, offload);
  keys.keep_last = settings.integer("zeropage.keep_last");
  keys.replica_check_steps = static_cast<int>(settings.integer("zeropage.replica_check_steps"));
  keys.allow_fallback = settings.flag("zeropage.allow_fallback");
  keys.preemption_folder = settings.string("zeropage.preemption_folder");
  keys.preemption_grace_s = settings.real("zeropage.preemption_grace_s");
  return keys;
}

std::vector<std::string> read_python_keys(const Settings& settings) {
  std::vector<std::string> set;
  for (const char* key :
       {"tensorboard.enabled", "wandb.enabled", "flops_profiler.enabled", "fp16.auto_cast", "dataloader_drop_last"}) {
    if (settings.flag(key)) set.emplace_back(key);
  }
  return set;
}

CommsLog read_comms_log(const Settings& settings) {
  CommsLog log;
  log.enabled = settings.flag("comms_logger.enabled");
  log.verbose = settings.flag("comms_logger.verbose");
  log.debug = settings.flag("comms_logger.debug");
  if (settings.flag("comms_logger.prof_all")) return log;
  static const std::set<std::string> kOperations = {"all_gather", "reduce_scatter", "all_reduce", "broadcast",
                                                    "all_to_all", "barrier",        "exchange",   "copy"};
  log.operations = settings.strings("comms_logger.prof_ops");
  for (const auto& name : log.operations) {
    if (!kOperations.contains(name)) {
      settings.fail("comms_logger.prof_ops",
                    fmt::format("expected names among {}, got \"{}\"", fmt::join(kOperations, ", "), name));
    }
  }
  if (log.operations.empty()) log.enabled = false;
  return log;
}

Observation read_observation(const Settings& settings) {
  Observation observation;
  observation.times =
      settings.flag("wall_clock_breakdown") || settings.optional<std::string>("zeropage.metrics_file").has_value();
  observation.trace_file = settings.optional<std::string>("zeropage.trace.file");
  observation.trace_first_step = settings.integer("zeropage.trace.first_step");
  observation.trace_steps = settings.integer("zeropage.trace.steps");
  observation.comms = read_comms_log(settings);
  return observation;
}

std::string read_document(const std::string& path) {
  return read_file(path, "the configuration", "check its path", json::kMaxDocumentBytes);
}

}  // namespace

Resolved resolve(const std::string& json_text, const std::string& origin, int world_size, const Planned& planned) {
  if (world_size < 0)
    throw ConfigError(fmt::format("world_size: expected 0 (not known yet) or more, got {}", world_size));
  return resolve(check(json::parse(json_text, origin), origin, planned), world_size);
}

Resolved resolve(Settings settings, int world_size) {
  Config config;
  config.automatic = read_automatic(settings);
  config.batch = resolve_batch(settings, world_size);
  config.batch.counted = settings.flag("managed_gradient_accumulation");
  config.precision = read_precision(settings);
  config.types = read_data_types(settings);
  config.loss_scale = read_loss_scale(settings);
  config.cast_inputs = config.precision == Precision::kFp16 && settings.flag("fp16.auto_cast");
  config.fp32_masters =
      !(config.precision == Precision::kFp16 && settings.flag("fp16.fp16_master_weights_and_grads")) &&
      !(config.precision == Precision::kBf16 && settings.flag("bf16.bf16_master_weights_and_grads"));
  config.autocast_dtype = read_autocast(settings, config.precision);
  config.gradients = read_gradients(settings, config.precision);
  config.zero = read_zero(settings);
  config.zero.shard_ranks = read_shard_ranks(settings, config.zero, world_size);
  config.optimizer = read_optimizer(settings);
  config.state_dtype = read_state_dtype(settings, config.precision, config.optimizer);
  config.schedule = read_schedule(settings);
  config.aio = {settings.integer("aio.block_size"), settings.integer("aio.queue_depth")};
  config.steps_per_print = settings.optional<std::int64_t>("steps_per_print");
  config.log_level = settings.optional<std::string>("log_level");
  config.disable_python_gc = settings.flag("disable_python_gc");
  config.dump_state = settings.flag("dump_state");
  config.dataloader_drop_last = settings.flag("dataloader_drop_last");
  config.allow_untested_optimizer = settings.flag("zero_allow_untested_optimizer");
  config.zeropage = read_zeropage(settings, config.zero.offload);
  config.observation = read_observation(settings);
  config.python_keys = read_python_keys(settings);
  config.effective_json = effective_json(settings);
  return {std::move(settings), std::move(config)};
}

Config Config::from_json(const std::string& text, int world_size, const std::string& origin) {
  Config config = resolve(text, origin, world_size).config;
  config.document_ = text;
  config.origin_ = origin;
  config.world_size_ = world_size;
  return config;
}

Config Config::with_planned(const Planned& planned) const {
  Config config = resolve(document_, origin_, world_size_, planned).config;
  config.document_ = document_;
  config.origin_ = origin_;
  config.world_size_ = world_size_;
  return config;
}

Config Config::from_file(const std::string& path, int world_size) {
  return from_json(read_document(path), world_size, path);
}

std::vector<std::string> notes(const std::string& json_text, const std::string& origin) {
  return check(json::parse(json_text, origin), origin).notes;
}

std::vector<std::string> notes_of_file(const std::string& path) { return notes(read_document(path), path); }

}  // namespace zeropage::config
