/// \file
/// An all_to_all over hosts: every part is first sent to the rank on its sender's host in its receiver's column, and
/// from there, together with the other parts of that host, to the receiver.
#pragma once

#include "zeropage/comm/hosts/host_grid.h"
#include "zeropage/comm/hosts/hosts_queue.h"

namespace zeropage::comm {

/// The arguments of Communicator::all_to_all.
struct AllToAllCall {
  const std::byte* sent = nullptr;
  std::byte* received = nullptr;
  PartBytes part_bytes;
  Tag tag;
};

/// Appends the stages of `call` for `rank` of `grid`. Memory while it runs: twice the bytes that the rank sends or
/// forwards.
void add_all_to_all(HostsOperation& operation, const HostGrid& grid, int rank, const AllToAllCall& call);

}  // namespace zeropage::comm
