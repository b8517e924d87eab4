/// \file
/// Tensors whose bytes are on a drive while nobody uses them: the state of an optimizer that PyTorch runs, with
/// offload_optimizer on NVMe.
///
///   1. `put` writes a tensor's bytes to the drive and frees its memory. The tensor stays the same object and keeps its
///      type and shape; an access to its bytes is an error that says where they are.
///   2. `get` gives it memory with these bytes again, until the next `put`.
///   3. `read` returns a copy of the bytes, and leaves the tensor as it is.
///
/// `put` leaves small tensors, views, tensors with views, and tensors of devices in memory; for tensors in memory `get`
/// and `read` do nothing. The space of tensors that were freed is used again.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "zeropage/base/ledger.h"
#include "zeropage/config/config.h"
#include "zeropage/io/scratch.h"

namespace zeropage::session {

class TensorsOnDrive {
 public:
  /// The smallest tensor that `put` moves, in bytes.
  static constexpr std::int64_t kSmallestBytes = 4096;

  /// Memory: that of io::Scratch, an entry of `ledger`. Errors: as io::Store.
  TensorsOnDrive(io::StoreOptions options, std::shared_ptr<Ledger> ledger);

  /// `name` is for messages. Errors: IoError, TimeoutError; then the tensor is still in memory.
  void put(const at::Tensor& tensor, const std::string& name);

  /// Errors: IoError, TimeoutError; then its bytes are still on the drive.
  void get(const at::Tensor& tensor);

  /// The tensor itself if it is in memory. Errors: IoError, TimeoutError.
  at::Tensor read(const at::Tensor& tensor);

  /// Whether the bytes are on the drive now, and only there.
  bool has(const at::Tensor& tensor) const;

 private:
  using WeakTensor = c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>;
  struct Entry {
    WeakTensor tensor;
    io::Scratch::Piece piece;
  };
  void drop_freed();

  io::Scratch scratch_;
  LedgerEntry memory_;
  std::map<const c10::TensorImpl*, Entry> entries_;
};

/// For the state of an optimizer that PyTorch runs with `config`. Null: the state stays in memory.
std::shared_ptr<TensorsOnDrive> make_tensors_on_drive(const config::Config& config, int rank,
                                                      std::shared_ptr<Ledger> ledger);

/// zero_optimization.save_muon_momentum_buffer_in_memory.
bool keeps_momenta_in_memory(const config::Config& config);

}  // namespace zeropage::session
