/// \file
/// Reductions in 4 bits (optim/block_codes.h): a rank's gradients of a page are coded for each owner, the codes are
/// exchanged, and each owner adds the decoded values, in fp32 and in the order of the ranks.
///
/// Between hosts, where the communicator sums by hosts (comm/hosts/hosts_reduction.h): each host adds its own ranks'
/// gradients as they are, and only the sums of hosts are coded. The bits are then others than on one host.
///
/// Decoded values are rounded to the type of the gradients before they are added. So ranks that share memory get the
/// same bits without an exchange: each one rounds its gradients in place, and the ordinary reduction follows.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <memory>

#include "zeropage/base/ledger.h"
#include "zeropage/comm/communicator.h"

namespace zeropage::reduce {

/// Wraps `inner`, replacing its reduce_scatter of fp32, bf16 and fp16 values on `device`, which are overwritten. Wire:
/// 0.27 of bf16's bytes. Memory, if ranks do not share it: twice that for each reduction in progress. All other calls
/// go to `inner`.
std::shared_ptr<comm::Communicator> code_reductions(std::shared_ptr<comm::Communicator> inner, c10::Device device,
                                                    std::shared_ptr<Ledger> ledger);

}  // namespace zeropage::reduce
