/// \file
/// How the ranks that the environment tells of find each other.
#pragma once

#include <memory>

#include "zeropage/comm/communicator.h"
#include "zeropage/comm/world.h"
#include "zeropage/config/config.h"

namespace zeropage::cpp {

/// Joins the ranks of one host in shared memory. Collective. Errors: ConfigError (several hosts, or another communicator is
/// configured: the program must bring its own), IoError, PeerError, TimeoutError.
std::shared_ptr<comm::Communicator> join_ranks(const config::Config& config, const comm::World& world);

}  // namespace zeropage::cpp
