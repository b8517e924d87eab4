/// \file
/// Saving while training goes on.
///
///   1. start(): copies this rank's tensors into memory and returns; that copy is all that training waits for.
///   2. A thread writes and commits it by the protocol of checkpoint/save.cc, over a communicator of its own.
///   3. wait() returns when it has ended, and throws its error once. One save at a time.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <atomic>
#include <exception>
#include <memory>
#include <thread>

#include "zeropage/base/ledger.h"
#include "zeropage/checkpoint/save.h"
#include "zeropage/comm/communicator.h"
#include "zeropage/memory/device_buffer.h"

namespace zeropage::engine {

class BackgroundSave {
 public:
  /// `communicator`: used by nobody else while a save is under way.
  BackgroundSave(checkpoint::FileSystem& files, std::shared_ptr<comm::Communicator> communicator,
                 std::shared_ptr<Ledger> ledger);

  /// Waits; an error that nobody has asked for is logged.
  ~BackgroundSave();
  BackgroundSave(const BackgroundSave&) = delete;
  BackgroundSave& operator=(const BackgroundSave&) = delete;

  /// Waits for the save before, then copies and starts. Cost: one copy of the tensors into memory that is kept for
  /// later saves (counted as buffers). Errors: those of wait(), IoError when there is no memory.
  void start(checkpoint::SaveRequest request);

  /// True from the moment a save has failed until wait() has thrown its error.
  bool failed() const { return failed_; }

  /// Errors: those of checkpoint::save.
  void wait();

 private:
  void copy(std::vector<checkpoint::LocalTensor>& tensors);

  checkpoint::FileSystem& files_;
  std::shared_ptr<comm::Communicator> communicator_;
  std::shared_ptr<Ledger> ledger_;
  std::unique_ptr<memory::DeviceBuffer> copy_;
  std::thread thread_;
  std::exception_ptr error_;
  std::atomic<bool> failed_{false};
};

}  // namespace zeropage::engine
