/// \file
/// Where the buffers of collectives over groups of ranks are (group_communicator.h): the memory and the arithmetic of
/// intermediate sums, and the streams of a device.
///
/// Process groups that order a device's streams (NCCL) may wait for ever if ranks start the collectives of several
/// communicators in different orders. So all stages of a collective on such a device start when the rank asks for it,
/// on a stream of its own:
///  1. That stream waits for the earlier work of the current one.
///  2. Each stage is started on it, and the stream, not the host, waits for its end. Sums between stages are computed
///     on it.
///  3. The caller's wait orders the stream that is then current after all of that.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "zeropage/base/dtype.h"
#include "zeropage/comm/communicator.h"

namespace zeropage::comm {

/// Memory of one kind for intermediate sums, and additions there.
class SumMemory {
 public:
  virtual ~SumMemory() = default;

  /// At least one byte, contents undefined. On a device it belongs to the current stream, which may use it again as
  /// soon as it is freed.
  virtual std::shared_ptr<std::byte> allocate(std::int64_t bytes) const = 0;

  /// reduce_consecutive. On a device: in the order of its current
  /// stream, and without `on_reduced`.
  virtual void add(const std::byte* terms, std::int64_t count, std::byte* out, std::int64_t numel, DType in_dtype,
                   DType out_dtype, bool accumulate, const OnReduced& on_reduced, const std::byte* start) const = 0;
};

/// Host memory.
std::shared_ptr<const SumMemory> host_sums();

/// The stream of one collective.
class OperationStream {
 public:
  virtual ~OperationStream() = default;

  /// Makes it the device's current stream in this thread until the result is destroyed.
  virtual std::shared_ptr<void> enter() = 0;

  /// Orders it, while it is current, after a collective that was started on it, although the comparison with the peers'
  /// may still run. Only if GroupDevice::orders_streams(). Errors: those of Work::wait.
  virtual void order_after(Work& work) = 0;

  /// Call after the last work on it.
  virtual void end() = 0;

  /// After end(): whether its work is done. Does not block.
  virtual bool is_over() const = 0;

  /// After end(): orders the device's current stream after its work.
  virtual void order_current() = 0;
};

class GroupDevice {
 public:
  virtual ~GroupDevice() = default;

  /// Whether `buffer` is in its memory; otherwise it is in host memory.
  virtual bool holds(const void* buffer) const = 0;

  /// Whether collectives on its memory are ordered by streams, so that the host need not wait for their ends.
  virtual bool orders_streams() const = 0;

  virtual std::shared_ptr<const SumMemory> sums() const = 0;

  /// A stream whose work comes after the earlier work of the current one.
  virtual std::shared_ptr<OperationStream> begin() = 0;
};

}  // namespace zeropage::comm
