/// \file
/// An engine's recordings: the timeline of its configuration, and the table of collectives at its end.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "zeropage/base/timeline.h"
#include "zeropage/comm/communicator.h"
#include "zeropage/config/config.h"

namespace zeropage::engine {

class TraceRecorder {
 public:
  /// The environment variable ZEROPAGE_TRACE has precedence over the configured file of the trace.
  TraceRecorder(const config::Observation& wanted, int rank);

  /// Prints the table of collectives on rank 0, if comms_logger is on.
  ~TraceRecorder();
  TraceRecorder(const TraceRecorder&) = delete;
  TraceRecorder& operator=(const TraceRecorder&) = delete;

  /// Null when nothing is observed.
  const std::shared_ptr<Timeline>& timeline() const { return timeline_; }

  /// A forward begins where the module is called and ends where the backward begins; a forward without a backward is
  /// not recorded.
  void begin_forward();
  void end_forward();

  /// Runs the step of the engine. `step` returns whether it ended an optimizer step.
  bool step(const std::function<bool()>& step) const;

  /// The same communicator, its transfers added to the timeline if there is one.
  std::shared_ptr<comm::Communicator> observed(std::shared_ptr<comm::Communicator> communicator) const;

 private:
  config::CommsLog comms_;
  int rank_;
  std::shared_ptr<Timeline> timeline_;
  std::int64_t forward_begin_ns_ = 0;  // 0: none has begun
};

}  // namespace zeropage::engine
