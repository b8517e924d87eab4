/// \file
/// Optimizer state that is kept in host memory and updated on a device. In a pass a page's arrays are copied to a
/// buffer of the device, updated there, and copied back:
///
///   1. begin_pass: the copies of the first pages are started, one per buffer, on a separate stream.
///   2. acquire: the device's current stream waits for the page's copy; the host does not wait.
///   3. release: changed arrays are copied back on a second stream, after the earlier work of the current stream. The
///      next page that has no buffer yet gets this one, and its copy waits until the buffer is free.
///   4. The next pass's copies wait for those of the last one on the device. Outside of a pass (checkpoints, values
///      that users read and write) acquire returns the arrays in host memory, and the host waits for the last pass
///      first.
///
/// Two buffers keep both directions of the link busy: one page is copied to the device while another one is copied
/// back.
#pragma once

#include <memory>

#include "zeropage/comm/communicator.h"
#include "zeropage/config/config.h"
#include "zeropage/engine/optimizer_state_store.h"

namespace zeropage::engine {

/// Whether offloaded optimizer state is updated on `device` (zeropage.offloaded_update); never if parameters are on a
/// drive. "auto": yes if the host memory is page-locked, this build has kernels for the optimizer on the device, and
/// the configuration sets no speculation_bytes, which are for updates on the host.
bool is_updated_on_device(const config::Config& config, c10::Device device);

/// `host` keeps the offloaded pages of `shape` in host memory. Memory: formula::kStreamBuffers times the state of the
/// largest of them.
std::unique_ptr<OptimizerStateStore> make_streamed_state_store(std::unique_ptr<OptimizerStateStore> host,
                                                               const StateShape& shape, c10::Device device,
                                                               std::shared_ptr<comm::Communicator> communicator,
                                                               std::shared_ptr<Ledger> ledger);

}  // namespace zeropage::engine
