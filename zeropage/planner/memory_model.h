/// \file
/// Bytes in addition to the model state. Sources: this engine's limits (frames, buckets); activations: Korthikanti et
/// al., "Reducing Activation Recomputation in Large Transformer Models" (arXiv 2205.05198), and ZeRO-Infinity (arXiv
/// 2104.07857).
///
///   frames       stage 3: gathered parameters, at most stage3_max_live_parameters and at most all of them
///   buckets      gradients that are being reduced; stages 2 and 3: a page that is being filled and, with several
///                ranks, the two pages that are being reduced; stage 1 in 16 bit: the fp32 sums of two shards of pages
///   state        an optimizer on disk passes through offload_optimizer.buffer_count pages in host memory
///   undo log     an optimizer in host memory that is updated there: default_undo_log_bytes
///   streaming    an optimizer in host memory that is updated on the device: kStreamBuffers pages of it, counted with
///                the buckets
///   update       the copies that an optimizer of PyTorch gets: planned_optimizer.h
///   activations  a layer keeps 34 * s * b * h bytes in 16 bit (fused attention: no s x s scores); without
///                checkpointing all layers keep it; with checkpointing 2 * s * b * h per layer, and one layer in full.
///                The head adds its logits in fp32 and their gradient: 8 * s * b * v.
#pragma once

#include "zeropage/planner/make_plan.h"

namespace zeropage::planner {

/// Bytes that are sent for an element in 8 and in 4 bits, with its share of a scale (optim/block_codes.h).
inline constexpr double kBytesIn8Bits = 1 + 4.0 / 256;
inline constexpr double kBytesIn4Bits = 0.5 + 4.0 / 128;

/// Everything but activations, by strategy.
MemoryEstimate estimate_memory(const Request& request, const Strategy& strategy);

/// Activations of one micro batch on one rank.
std::int64_t activation_bytes(const Request& request, bool checkpointing);

/// Elements of the largest page at a stage: the default page, or a larger one for a larger parameter or for an
/// optimizer that needs whole parameters.
std::int64_t page_numel(const Request& request, int stage);

}  // namespace zeropage::planner
