/// \file
/// What a user asks a plan for: the options of `zeropage plan`, of zeropage.plan in Python and of zeropage::make_plan.
#pragma once

#include <cstdint>
#include <map>
#include <string>

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
  int shard_ranks = 0;               ///< ranks that state is divided over, from stage 1 on; 0: all
};

}  // namespace zeropage
