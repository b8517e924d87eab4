/// \file
/// Connects the ranks of the job; the environment describes them.
#pragma once

#include <memory>

#include "zeropage/comm/communicator.h"
#include "zeropage/comm/world.h"
#include "zeropage/config/config.h"
#include "zeropage/cpp/options.h"

namespace zeropage::cpp {

struct Communicators {
  std::shared_ptr<comm::Communicator> parameters;
  std::shared_ptr<comm::Communicator> gradients;  ///< null: the same serves both
  std::shared_ptr<comm::Communicator> saves;      ///< for zeropage.async_save
};

/// The ranks of `Options::communicator`, or those of the environment. Errors: ConfigError.
comm::World world_of(const Options& options);

/// The device of the engine.
at::Device device_of(const Options& options);

/// Returns the program's own communicators, or connects the ranks according to zeropage.communicator. "auto": shared
/// memory on one host; on several hosts MPI if mpirun or srun has started the ranks; otherwise, and on GPUs, c10d at
/// MASTER_ADDR. Collective.
/// Errors: ConfigError (the requested transport cannot connect these ranks), IoError, PeerError, TimeoutError.
Communicators join_ranks(const config::Config& config, const comm::World& world, const Options& options);

}  // namespace zeropage::cpp
