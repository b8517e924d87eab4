#include "zeropage/formula/automatic.h"

#include <fmt/format.h>

#include <algorithm>

namespace zeropage::formula {
namespace {

constexpr double kShareAsItIs = 1.0 / 3;
constexpr double kShareOfState = 1.0 / 2;
constexpr std::int64_t kPagesOnTheirWay = 3;
constexpr std::int64_t kPartOfBuckets = 16;
constexpr std::int64_t kPartOfFrames = 4;
constexpr std::int64_t kLargestPrefetchNumel = 50'000'000;  // DeepSpeed's default

std::string gigabytes(double bytes) { return fmt::format("{:.3g} GB", bytes / 1e9); }

/// Makes the choices one after the other; later choices use the earlier ones.
class Chooser {
 public:
  Chooser(const config::Config& config, int world_size, ParameterCounts counts, std::int64_t largest_numel,
          const FreeMemory& memory)
      : config_(config), counts_(counts), largest_numel_(largest_numel), memory_(memory) {
    options_ = StateOptions::from_config(config, world_size);
    world_size_ = world_size;
    counts_.persistent_numel = 0;
    const double share = offloaded_share(config);
    counts_.offloaded_numel = static_cast<std::int64_t>(share * static_cast<double>(counts.trainable_numel));
  }

  std::vector<AutoChoice> run() {
    choose_stage();
    choose_optimizer_device();
    choose_parameter_device();
    choose_buckets();
    choose_gathered();
    for (const std::string& path : config_.automatic) {
      if (path.find('.') == std::string::npos) choose_batch_size(path);
    }
    return std::move(choices_);
  }

 private:
  bool is_open(const std::string& path) const { return std::ranges::count(config_.automatic, path) > 0; }

  void take(std::string path, std::variant<std::int64_t, std::string> value, std::string reason) {
    choices_.push_back({std::move(path), std::move(value), std::move(reason)});
  }

  double device_state_bytes() const {
    return static_cast<double>(placed_state_bytes(counts_, options_).device.total());
  }

  bool is_too_much(double bytes) const { return bytes > kShareOfState * static_cast<double>(memory_.device_bytes); }

  std::string of_free() const {
    return fmt::format("of {} free on the device", gigabytes(static_cast<double>(memory_.device_bytes)));
  }

  void choose_stage() {
    if (!is_open("zero_optimization.stage")) return;
    AutoStage choice = options_.offload_parameters ? AutoStage{3, "parameters are offloaded, which is part of stage 3"}
                                                   : formula::choose_stage(counts_, options_, memory_.device_bytes);
    // One rank has nothing to shard, but it can gather and evict offloaded pages.
    const bool needs_offload = options_.world_size == 1 && is_open("zero_optimization.offload_param.device");
    if (needs_offload && !memory_.device_is_host && parameters_must_go(3)) {
      choice = {3, "the parameters do not fit together with the rest, and offloading them is part of stage 3"};
    }
    options_.stage = choice.stage;
    take("zero_optimization.stage", choice.stage, choice.reason);
  }

  /// Whether the device holds too much at `stage` even when the optimizer state is offloaded.
  bool parameters_must_go(int stage) const {
    StateOptions options = options_;
    options.stage = stage;
    ParameterCounts counts = counts_;
    if (is_open("zero_optimization.offload_optimizer.device")) counts.offloaded_numel = counts.trainable_numel;
    return is_too_much(static_cast<double>(placed_state_bytes(counts, options).device.total()));
  }

  void choose_optimizer_device() {
    const std::string path = "zero_optimization.offload_optimizer.device";
    if (!is_open(path)) return;
    const double bytes = device_state_bytes();
    const std::string state =
        fmt::format("the state takes {} {} at stage {}", gigabytes(bytes), of_free(), options_.stage);
    if (!is_too_much(bytes)) return take(path, "none", state);
    const bool has_drive = !config_.zero.offload.optimizer_folders.empty();
    counts_.offloaded_numel = counts_.trainable_numel;
    const double there = static_cast<double>(placed_state_bytes(counts_, options_).offloaded.optimizer);
    const bool has_log = config_.zeropage.offloaded_update != config::UpdatePlace::kDevice;
    const auto undo_log = static_cast<double>(
        has_log ? config_.zeropage.speculation_bytes.value_or(default_undo_log_bytes(counts_, options_)) : 0);
    const bool host_is_small =
        memory_.device_is_host || there + undo_log > kShareOfState * static_cast<double>(memory_.host_bytes);
    if (has_drive && host_is_small) {
      options_.optimizer_on_disk = true;
      return take(path, "nvme", state + fmt::format("; the {} of the optimizer go to the drive", gigabytes(there)));
    }
    if (memory_.device_is_host) {
      counts_.offloaded_numel = 0;
      return take(path, "none", state + ", and the host is the device: name a drive as nvme_path, or use more ranks");
    }
    take(path, "cpu", state + fmt::format("; the {} of the optimizer go to the host", gigabytes(there)));
  }

  void choose_parameter_device() {
    const std::string path = "zero_optimization.offload_param.device";
    if (!is_open(path)) return;
    const double bytes = device_state_bytes();
    const std::string state = fmt::format("the rest takes {} {}", gigabytes(bytes), of_free());
    const bool goes = options_.stage == 3 && !memory_.device_is_host && is_too_much(bytes);
    options_.offload_parameters = goes;
    take(path, goes ? "cpu" : "none", state);
  }

  std::int64_t element() const { return element_bytes(compute_dtype(options_.precision)); }

  void choose_buckets() {
    const std::int64_t total_numel = counts_.trainable_numel + counts_.frozen_numel;
    const std::int64_t free_numel = memory_.device_bytes / kPartOfBuckets / kPagesOnTheirWay / element();
    const std::int64_t page_numel = layout::default_page_numel(total_numel);
    const std::int64_t numel = std::max<std::int64_t>(1, std::min(page_numel, free_numel));
    for (const char* path : {"zero_optimization.reduce_bucket_size", "zero_optimization.allgather_bucket_size"}) {
      if (!is_open(path)) continue;
      take(path, numel,
           numel == page_numel ? fmt::format("a page of a model of {} parameters", total_numel)
                               : fmt::format("{} pages of it are a 16th {}", kPagesOnTheirWay, of_free()));
    }
  }

  void choose_gathered() {
    const std::int64_t total_numel = counts_.trainable_numel + counts_.frozen_numel;
    const std::int64_t free_numel = memory_.device_bytes / kPartOfFrames / element();
    const std::int64_t live = std::max(std::min(total_numel, free_numel), 2 * largest_numel_);
    const char* live_path = "zero_optimization.stage3_max_live_parameters";
    const bool live_is_open = is_open(live_path);
    if (live_is_open) {
      take(live_path, live,
           free_numel >= total_numel ? "the whole model, gathered, takes less than a quarter " + of_free()
                                     : fmt::format("gathered parameters may take a quarter {}", of_free()));
    }
    if (!is_open("zero_optimization.stage3_prefetch_bucket_size")) return;
    const std::int64_t limit = live_is_open ? live : config_.zero.max_live_numel;
    take("zero_optimization.stage3_prefetch_bucket_size", std::min(limit / 4, kLargestPrefetchNumel),
         "a quarter of the limit on gathered parameters, at most 50 million");
  }

  void choose_batch_size(const std::string& path) {
    const config::Batch& batch = config_.batch;
    const std::int64_t value = path == "train_batch_size"                 ? batch.train_batch_size
                               : path == "train_micro_batch_size_per_gpu" ? batch.micro_batch_size
                                                                          : batch.accumulation_steps;
    take(path, value,
         fmt::format("{} = {} x {} x {} ranks; the program's loop makes the micro batches", batch.train_batch_size,
                     batch.micro_batch_size, batch.accumulation_steps, world_size_));
  }

  const config::Config& config_;
  ParameterCounts counts_;
  std::int64_t largest_numel_;
  FreeMemory memory_;
  StateOptions options_;
  int world_size_ = 1;  // all ranks
  std::vector<AutoChoice> choices_;
};

}  // namespace

AutoStage choose_stage(const ParameterCounts& counts, StateOptions options, std::int64_t free_bytes) {
  const auto state = [&](int stage) {
    options.stage = stage;
    return static_cast<double>(placed_state_bytes(counts, options).device.total());
  };
  const auto memory = static_cast<double>(free_bytes);
  const std::string of_memory = fmt::format("of {} free per rank", gigabytes(memory));
  if (options.world_size == 1) {
    return {0, fmt::format("there is one rank, so nothing can be sharded; the state takes {} {}", gigabytes(state(0)),
                           of_memory)};
  }
  if (state(0) <= kShareAsItIs * memory) {
    return {1, fmt::format(
                   "the whole state would take {} {}: it fits as it is, and stage 1 frees the optimizer's memory at "
                   "no cost",
                   gigabytes(state(0)), of_memory)};
  }
  if (state(2) <= kShareOfState * memory) {
    return {2, fmt::format("the state takes {} {} at stage 2, {} unsharded; its communication is that of plain data "
                           "parallelism",
                           gigabytes(state(2)), of_memory, gigabytes(state(0)))};
  }
  std::string reason =
      fmt::format("stage 2 would take {} {}, more than half, so too little room for activations; stage 3 takes {}",
                  gigabytes(state(2)), of_memory, gigabytes(state(3)));
  if (state(3) > kShareOfState * memory) {
    reason += "; this may still be too much: use more ranks, or look at `zeropage plan`";
  }
  return {3, reason};
}

std::vector<AutoChoice> choose_automatic(const config::Config& config, int world_size, ParameterCounts counts,
                                         std::int64_t largest_numel, const FreeMemory& memory) {
  return Chooser(config, world_size, counts, largest_numel, memory).run();
}

}  // namespace zeropage::formula
