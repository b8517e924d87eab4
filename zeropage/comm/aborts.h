/// \file
/// The first reason for which a job has aborted. The communicators of one job that abort together share it, so that an
/// abort of one of them ends the waits of all, also of ranks that are not in it: those of other hosts or groups.
///
///  1. A communicator that aborts publishes its reason here first. The first reason counts.
///  2. Every wait of every communicator looks here now and then, and ends with that reason.
#pragma once

#include <memory>
#include <string>

#include "zeropage/comm/communicator.h"

namespace zeropage::comm {

class Aborts {
 public:
  virtual ~Aborts() = default;

  /// Keeps `reason`, unless there is one already. From any thread.
  virtual void publish(const std::string& reason) noexcept = 0;

  /// The reason; empty: none is known. From any thread. Cost: a look at memory or, with a store, one question to it.
  virtual std::string reason() noexcept = 0;
};

/// For ranks that are threads of this process.
std::shared_ptr<Aborts> make_thread_aborts();

/// For communicators that are used beside `all`, which has all of their ranks: these abort with it, and it with them.
std::shared_ptr<Aborts> aborts_of(std::shared_ptr<Communicator> all);

/// For a part of a job whose ranks have other numbers: `part` ("among the ranks of host 0") precedes its reasons. Null
/// if `job` is.
std::shared_ptr<Aborts> aborts_of_part(std::shared_ptr<Aborts> job, std::string part);

}  // namespace zeropage::comm
