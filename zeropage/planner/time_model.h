/// \file
/// Seconds of one optimizer step: ZeRO-Infinity's efficiency model (arXiv 2104.07857) with this engine's order of work.
///
/// P parameters, N ranks, H hosts of L ranks, e bytes of an element, e_g bytes that are sent for a gradient.
///   compute       8 * P * tokens with checkpointing (forward 2, recomputation 2, backward 4), else 6; and 12 * layers
///                 * hidden * sequence per token for attention, a third more with checkpointing (PaLM, arXiv
///                 2204.02311, appendix B)
///   gather        a ring: (N - 1) / N of its bytes through the slower one of a device's link and, across hosts, the
///                 host's network, because a ring enters and leaves each host once
///   reduce        every rank sends its terms to their owners, who add them in order: (N - 1) / N of its bytes through
///                 a device's link, and L * (H - 1) / H through the host's network; the slower one counts
///   cores         CPU ranks do both by hosts (docs/launcher.md): (L - 1) / L inside a host; through the network
///                 (H - 1) / H of a gather or of sums in 4 bits, and for exact sums the fewest bytes that keep the
///                 order: at most 4 * (H - 1) * (H + 1) / H^2 per element
///   groups        hybrid sharding in groups of S ranks (shard_ranks): gathers (S - 1) / S through the devices' links;
///                 reductions the same of their terms, then fp32 sums from group to group, and their broadcast:
///                 (groups - 1 + log2 groups) messages of 4 / S bytes per element one after the other
///   latency       a collective of a page has N - 1 hops: (H - 1) through the network, and the rest inside hosts (as
///                 NCCL's tuner counts them); all parameters are P / page such collectives. In 8 bits
///                 (quantized_weights, stage 3) the e below is 1.02, in 4 bits (quantized_gradients, from stage 1 on)
///                 e_g is 0.53
///   stage 0       all-reduce overlapped with the last backward of a step: a reduction and a gather of e_g * P
///   stage 1       reduce-scatter e_g * P overlapped with the last backward; gather e * P after the update
///   stage 2       reduce-scatter overlapped with every backward; gather e * P after the update
///   stage 3       two gathers e * P and a reduce-scatter e_g * P per micro batch, all overlapped with the computation
///                 (ZeRO, arXiv 1910.02054: 3 P). With second shards of n nearby ranks every gather except the first
///                 of a step uses them: e * P * (n - 1) / n bytes and n - 1 hops, inside the host and not in 8 bits
///   update        30 bytes of memory traffic per element of the shard: reads 16 (gradient, master, moments), writes 14
///                 an optimizer of PyTorch works on a copy of the masters: 16 bytes more. Muon, in addition, the
///                 operations of planned_optimizer.h for what the rank owns. Parameters that lie in several shards
///                 (layout/whole_pages.h) are sent to their owners and back: 12 bytes per element
///   host          gradients are copied to the host overlapped with the backward, updated parameters are copied back
///                 overlapped with the update
///   device        optimizer state of the host that is updated on the device: 12 bytes per element (fp32: 8) in each
///                 direction of the link, and a sharded gradient, which is kept on the host, back to the device; in
///                 addition the 30 bytes of the device's memory. A plan updates on the device if this takes less time
///                 than on the host
///   disk          max((12 + 4) / read, 14 / write) per element of the shard: reads and writes at the same time
/// With perfect overlap a phase takes as long as its slowest part. Hardware that overlaps less, such as cores that both
/// compute and copy, also needs (1 - overlap) of the time of the other parts. efficiency = compute / step.
#pragma once

#include "zeropage/planner/make_plan.h"

namespace zeropage::planner {

/// request.hardware must be set. Errors: none.
TimeEstimate estimate_time(const Request& request, const Strategy& strategy, bool checkpointing);

/// For optimizer state in host memory: whether its update takes less time on the device, with copies of all of it there
/// and back, than on the host, whose memory all of its devices share. False without hardware, and if the device is the
/// CPU.
bool is_updated_on_device(const Request& request, const Strategy& strategy);

}  // namespace zeropage::planner
