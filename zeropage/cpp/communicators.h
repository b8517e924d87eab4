/// \file
/// How the ranks that the environment tells of find each other.
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

/// The ranks of `Options::communicator`, or those the environment tells of. Errors: ConfigError.
comm::World world_of(const Options& options);

/// Where the engine runs.
at::Device device_of(const Options& options);

/// The program's own communicators, else joins the ranks as zeropage.communicator says. "auto": in shared memory on one
/// host; on several through MPI when mpirun or srun has started them, else, and on GPUs, over c10d at MASTER_ADDR.
/// Collective.
/// Errors: ConfigError (what is asked for does not serve these ranks), IoError, PeerError, TimeoutError.
Communicators join_ranks(const config::Config& config, const comm::World& world, const Options& options);

}  // namespace zeropage::cpp
