/// \file
/// Ranks of several hosts, each with several ranks: data is sent once per host between hosts, not once per rank.
///
/// Two communicators do the work: one of the ranks of this host, and one of the ranks with this rank's position on
/// their hosts (its column).
///   all_gather      the column exchanges its shards; then the ranks of a host exchange the data of their columns
///   reduce_scatter  the ranks of a host exchange the terms of their columns' shards; then each column computes the
///                   sums of its own ranks' shards, by the routes of host_grid.h
///   ... in codes    the sums of each host are sent in 8 or 4 bits (hosts_reduction.h)
///   all_reduce      a reduce_scatter and then an all_gather, in place
///   broadcast       to the root's column; then each rank of that column to its host
/// Sums are bit-identical to every other communicator's: terms are added in the order of the ranks.
#pragma once

#include <cstdint>
#include <memory>

#include "zeropage/comm/aborts.h"
#include "zeropage/comm/communicator.h"
#include "zeropage/comm/hosts/host_grid.h"
#include "zeropage/comm/hosts/hosts_queue.h"

namespace zeropage::comm {

/// `inside` has the ranks of this host, `between` one rank of each host; neither may be used by other code, and buffers
/// are in host memory. `deterministic_reduction` false: a sum is computed on each host first, and then over hosts in
/// their order, with fewer bytes, and with other bits than on one host. A reduction needs memory of the size of its
/// input while it runs, and a gather of the part 1 / local_size of its output.
///
/// Errors of the two communicators are passed on, with the group whose rank numbers are in the message. A rank with an
/// error aborts the other communicator, so that the error reaches all hosts. `aborts`: shared with other communicators
/// of the job; `inside` and `between` were made with aborts_of_side of it. With it the error reaches all hosts also
/// where the ranks between do not communicate at the moment.
std::unique_ptr<Communicator> make_hosts_communicator(std::shared_ptr<Communicator> inside,
                                                      std::shared_ptr<Communicator> between,
                                                      bool deterministic_reduction,
                                                      std::shared_ptr<Aborts> aborts = nullptr);

/// The same with a queue that another communicator uses, too (group_communicator.h). Of the collectives with buffers it
/// has only broadcast on the queue's device; the others throw UsageError there.
std::unique_ptr<Communicator> make_hosts_communicator(std::shared_ptr<HostsQueue> queue, bool deterministic_reduction);

}  // namespace zeropage::comm
