/// \file
/// Ranks of several hosts, each with several ranks: what crosses from host to host crosses once for each host, not once
/// for each of its ranks.
///
/// Two communicators do the work: one of the ranks of this host, and one of the ranks that have this rank's place on
/// their hosts (its column).
///   all_gather      the column exchanges its shards; then the ranks of a host exchange what their columns have
///   reduce_scatter  the ranks of a host give each other the terms of their columns' shards; then each column forms the
///                   sums of its own ranks' shards, by the routes of host_grid.h
///   ... in codes    the sums of each host travel in 8 or 4 bits (hosts_reduction.h)
///   all_reduce      the one after the other, in place
///   broadcast       to the root's column; then each rank of that column to its host
/// Sums have the bits of every other communicator: terms are added in the order of the ranks.
#pragma once

#include <cstdint>
#include <memory>

#include "zeropage/comm/communicator.h"
#include "zeropage/comm/hosts/host_grid.h"

namespace zeropage::comm {

/// `inside` has the ranks of this host, `between` one rank of each host; both are used by no one else, and buffers are
/// in host memory. `deterministic_reduction` false: a sum is formed on each host first, and then over hosts in their
/// order: fewer bytes, and other bits than on one host. A reduction needs memory of the size of its input while it
/// runs, and a gather of the part 1 / local_size of its output.
///
/// Errors of the two communicators are passed on, and say whose ranks their message counts. A rank that meets one
/// aborts the other communicator, so that the error reaches all hosts.
std::unique_ptr<Communicator> make_hosts_communicator(std::shared_ptr<Communicator> inside,
                                                      std::shared_ptr<Communicator> between,
                                                      bool deterministic_reduction);

}  // namespace zeropage::comm
