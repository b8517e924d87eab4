/// \file
/// `zeropage plan` for C++ programs: memory and time of a model at every stage, and a recommendation. (zeropage::plan
/// is the namespace of the formulas.)
#pragma once

#include <cstdint>
#include <map>
#include <string>

namespace torch::nn {
class Module;
}

namespace zeropage {

/// The machine and the training; the same names as the options of `zeropage plan`.
struct PlanOptions {
  int num_gpus = 1;                              ///< devices of a host
  int num_nodes = 1;                             ///< hosts
  std::string device = {};                       ///< "H100", ..., or a file of figures; empty: bytes only
  std::map<std::string, std::string> figures{};  ///< instead of the device's: {"device_memory", "40GB"}
  std::string optimizer = "AdamW";               ///< AdamW, Adam, Lamb, Lion, Adagrad, SGD, Muon or whole
  std::int64_t optimizer_bytes = 8;              ///< with "whole": bytes of state per trained element
  std::string precision = "bf16";
  std::int64_t micro_batch = 1;
  std::int64_t accumulation_steps = 1;
  std::int64_t sequence = 2048;
  bool quantized_weights = false;    ///< gathered in 8 bits, at stage 3
  bool quantized_gradients = false;  ///< reduced in 4 bits, from stage 1 on
  int hpz_partition_size = 1;        ///< ranks of a host with second shards, at stage 3
};

struct TrainingPlan {
  std::string text;    ///< tables and the recommendation, for people
  std::string json;    ///< the same figures, for programs
  std::string config;  ///< the recommended ds_config.json; empty when nothing fits
  std::string reason;  ///< the reason of the recommendation
};

/// model: a count ("7B"), a safetensors file or index, a config.json or its folder. Cost: milliseconds. Errors:
/// ConfigError, IoError.
TrainingPlan make_plan(const std::string& model, const PlanOptions& options = {});

/// The same for a model that exists, whose parameters may be on the device "meta". Every parameter counts once.
TrainingPlan make_plan(const torch::nn::Module& model, const PlanOptions& options = {});

}  // namespace zeropage
