/// \file
/// A communicator over torch's process groups: NCCL, Gloo, MPI, UCC; for many machines and for GPUs.
#pragma once

#include <c10/core/Device.h>
#include <c10/util/intrusive_ptr.h>

#include <chrono>
#include <memory>

#include "zeropage/comm/aborts.h"
#include "zeropage/comm/communicator.h"

namespace c10d {
class ProcessGroup;
}  // namespace c10d

namespace zeropage::comm {

/// `data` moves buffers on `device`; `control`, a gloo group of the same ranks, moves host values (and host buffers, if
/// `device` is not the CPU). No other communicator may use either. `aborts`: of the communicators that abort with
/// this one; null: none does. Collective.
///
/// Sums: on CPU and gloo, or when `deterministic_reduction`, contributions are exchanged (all-to-all) and summed here
/// in the order of the ranks, so that results are bit-identical to every other communicator's; otherwise NCCL sums.
/// Wire bytes are the same. A reduce_scatter needs a receive buffer of the size of `whole` while it runs.
///
/// While checking is on (as it is at the start) every collective first exchanges its description (one small message per
/// rank); ranks that differ get PeerError instead of wrong sums, crashes or hangs. On devices with streams, works order
/// the current stream instead of blocking, like torch's, and a collective starts when it is called, so that ranks with
/// the same calls start the collectives of several communicators in the same order. After an error the process groups
/// cannot be used again.
std::unique_ptr<Communicator> make_c10d_communicator(c10::intrusive_ptr<c10d::ProcessGroup> data,
                                                     c10::intrusive_ptr<c10d::ProcessGroup> control, c10::Device device,
                                                     bool deterministic_reduction, std::chrono::milliseconds timeout,
                                                     std::shared_ptr<Aborts> aborts = {});

/// The process groups of a C10dCommunicator.
struct C10dGroups {
  c10::intrusive_ptr<c10d::ProcessGroup> data;
  c10::intrusive_ptr<c10d::ProcessGroup> control;
};

/// Two of them, on one device, as one communicator of ranks in groups (hosts/group_communicator.h): `inside` has the
/// ranks of this rank's group, `between` those with its place in each group. `aborts`: of all ranks of the job; the
/// rest as for make_c10d_communicator. Collective. On a device whose backend orders streams (NCCL) no collective makes
/// the host wait; sums between the two are computed on two streams of their own, so that consecutive reductions
/// overlap.
std::unique_ptr<Communicator> make_c10d_groups(C10dGroups inside, C10dGroups between, c10::Device device,
                                               bool deterministic_reduction, std::chrono::milliseconds timeout,
                                               std::shared_ptr<Aborts> aborts);

}  // namespace zeropage::comm
