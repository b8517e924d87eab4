/// \file
/// The optimizer's state on disk: a StateHome over the store (io/store.h). The arrays of a page are one extent.
///
///   - A pass reads pages ahead of their update and writes them behind it: read k+1, update k, write k-1, in a few buffers of the
///     size of the largest page.
///   - Passes alternate their direction, so that a pass begins with the pages that the last one left in the buffers.
///   - What a pass writes goes to the extents' other slots. end_pass() puts all of it in force: a pass that is abandoned leaves the
///     state before it.
///   - A page that nobody wrote yet is zeros and costs nothing.
#pragma once

#include "zeropage/paging/torch_config.h"

#include <memory>
#include <string>
#include <vector>

#include "zeropage/engine/state_home.h"
#include "zeropage/io/store.h"

namespace zeropage::engine {

/// The pages of `shape` that are offloaded live in a store with these options (at least three buffers; their size is found here);
/// the others in `rest`. `names`: per page, for messages. Errors: those of io::Store.
std::unique_ptr<StateHome> make_disk_home(const StateShape& shape, const std::vector<std::string>& names,
                                          io::StoreOptions options, std::unique_ptr<StateHome> rest,
                                          std::shared_ptr<Ledger> ledger);

}  // namespace zeropage::engine
