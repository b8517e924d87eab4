/// \file
/// The tables, one function per group of sections.
#pragma once

#include <vector>

#include "zeropage/config/schema.h"

namespace zeropage::config {

std::vector<Section> top_level_tables();   ///< batch, gradients, printing, data types
std::vector<Section> precision_tables();   ///< fp16, bf16, torch_autocast
std::vector<Section> optimizer_tables();   ///< optimizer, optimizer.params
std::vector<Section> scheduler_tables();   ///< scheduler, scheduler.params of the five schedules
std::vector<Section> zero_tables();        ///< zero_optimization and the sections inside it
std::vector<Section> own_tables();         ///< zeropage
std::vector<Section> storage_tables();     ///< aio, checkpoint, activation_checkpointing
std::vector<Section> monitor_tables();     ///< profilers and metric writers
std::vector<Section> automation_tables();  ///< elasticity, autotuning, compile

}  // namespace zeropage::config
