/// \file
/// Aborts (comm/aborts.h) of ranks that have a store of torch's.
#pragma once

#include <memory>

#include "zeropage/comm/aborts.h"

// torch's headers last, because they define macros.
#include <torch/csrc/distributed/c10d/Store.hpp>

namespace zeropage::comm {

/// Communicators with the same `store` abort together. Without a store, null.
std::shared_ptr<Aborts> store_aborts(c10::intrusive_ptr<c10d::Store> store);

}  // namespace zeropage::comm
