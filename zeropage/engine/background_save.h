/// \file
/// Saving in the background of training.
///
///   1. start(): copies this rank's tensors into memory and returns; training waits only for this copy.
///   2. A thread writes and commits it by the protocol of checkpoint/save.cc, over a separate communicator.
///   3. wait() returns when the save has ended, and throws its error once. One save at a time.
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
  /// `communicator`: must not be used by other code during a save.
  BackgroundSave(checkpoint::FileSystem& files, std::shared_ptr<comm::Communicator> communicator,
                 std::shared_ptr<Ledger> ledger);

  /// Waits; an error that has not been thrown yet is logged.
  ~BackgroundSave();
  BackgroundSave(const BackgroundSave&) = delete;
  BackgroundSave& operator=(const BackgroundSave&) = delete;

  /// Waits for the previous save, then copies and starts. Cost: one copy of the tensors into memory that is kept for
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
