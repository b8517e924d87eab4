/// \file
/// State on disk, page by page (io/page_cache.h): the optimizer's state as an OptimizerStateStore, and the shards of
/// parameters and gradients. Passes over the optimizer's state alternate their direction, so that a pass begins with
/// the pages that the last one left in the buffers.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <memory>
#include <string>
#include <vector>

#include "zeropage/comm/communicator.h"
#include "zeropage/config/config.h"
#include "zeropage/engine/optimizer_state_store.h"
#include "zeropage/io/page_cache.h"
#include "zeropage/layout/layout.h"

namespace zeropage::engine {

/// The options of this rank's store in `folders` for `config`.
io::StoreOptions store_options(const config::Config& config, std::vector<std::string> folders, int rank);

/// The store of the optimizer's state of `shape` for `config`: in memory (streamed_state_store.h if a device updates
/// state in host memory), or for offloaded pages on the drive. Errors: those of io::Store.
std::unique_ptr<OptimizerStateStore> make_optimizer_state_store(const StateShape& shape, const layout::Layout& layout,
                                                                const config::Config& config,
                                                                const std::shared_ptr<comm::Communicator>& communicator,
                                                                c10::Device device,
                                                                const std::shared_ptr<Ledger>& ledger);

/// The shards of parameters on the drive: all except persistent pages and the first other pages that fit max_in_cpu,
/// which stay in memory. Null: no parameter is on a drive. Errors: those of io::Store.
std::shared_ptr<io::PageCache> make_parameter_disk(const layout::Layout& layout, const config::Config& config, int rank,
                                                   const std::shared_ptr<Ledger>& ledger);

/// The gradients of all shards, `gradient_bytes` each. Errors: those of io::Store.
std::shared_ptr<io::PageCache> make_gradient_disk(const layout::Layout& layout, const config::Config& config, int rank,
                                                  std::int64_t gradient_bytes, const std::shared_ptr<Ledger>& ledger);

}  // namespace zeropage::engine
