/// \file
/// The store of the optimizer's state (fp32 masters, and moments in fp32 or packed) of every page. The update,
/// checkpoints and all other users hold one page's arrays at a time, independent of where the store keeps them.
///
///   1. begin_pass(pages): these pages will be acquired, each once. A store on a drive or another device starts to read
///      ahead. It returns the order in which they must be acquired.
///   2. acquire(page): waits until the page's arrays are in memory. They do not move until release.
///   3. release(page, changed): starts to write changed arrays back, while the following pages are processed.
///   4. end_pass(): waits until all changes are written back. commit() makes them final; abandon(), for state on a
///      drive, undoes them. There may be a second pass before that.
///
/// Outside of a pass any page may be acquired at any time (checkpoints, values that users write): then nothing is read
/// ahead, and release(changed) returns when the changes are written back. One page at a time, one thread; in memory two
/// threads may hold different pages.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "zeropage/base/ledger.h"
#include "zeropage/config/config.h"
#include "zeropage/io/mover.h"
#include "zeropage/layout/layout.h"
#include "zeropage/memory/device_buffer.h"
#include "zeropage/optim/packed_state.h"

namespace zeropage::engine {

/// A parameter's part of a range. Each begins with a new block of packed states.
struct StatePiece {
  int parameter = 0;
  std::int64_t parameter_offset = 0;  ///< where it starts in the parameter
  std::int64_t offset = 0;            ///< from the start of the range
  std::int64_t numel = 0;
  std::int64_t block = 0;  ///< its first block
};

/// The pieces of elements [begin, end) of a page.
std::vector<StatePiece> pieces_of(const layout::Layout& layout, int page, std::int64_t begin, std::int64_t end);

/// The state of the range of a page that this rank updates, from its first element on.
struct StateArrays {
  static constexpr int kMaster = -1;

  float* master = nullptr;  ///< null on fp32 pages, whose parameters are their own masters
  std::array<float*, config::kMaxOptimizerStates> states = {};  ///< the optimizer's states, if they are fp32
  config::StateDtype dtype = config::StateDtype::kFloat32;
  std::array<optim::PackedState, config::kMaxOptimizerStates> packed = {};  ///< the optimizer's states, otherwise
  std::array<bool, config::kMaxOptimizerStates> squares = {};               ///< optim::is_sum_of_squares

  c10::Device device = c10::kCPU;    ///< the device of their memory
  std::span<std::byte> memory = {};  ///< the memory of all arrays

  /// Whether the master (kMaster) or the state of that index is fp32, in `array`.
  bool is_wide(int index) const { return index == kMaster || dtype == config::StateDtype::kFloat32; }
  float* array(int index) const { return index == kMaster ? master : states[index]; }

  /// The same arrays in a copy of `memory` that begins at `target`.
  StateArrays moved_to(std::byte* target, c10::Device target_device) const;
};

/// The content of a store for one page; see StateShape.
struct PageShape {
  std::int64_t numel = 0;
  std::int64_t blocks = 0;
  bool offloaded = false;
  bool masters = false;
};

/// The content of a store.
struct StateShape {
  std::vector<std::int64_t> numel;   ///< per page: elements that this rank updates; 0: the page is not trained
  std::vector<std::int64_t> blocks;  ///< per page: blocks of packed states, an upper bound
  std::vector<bool> offloaded;       ///< per page: it is on the host
  std::vector<bool> masters;         ///< per page: whether it has masters
  int states = 0;
  config::StateDtype dtype = config::StateDtype::kFloat32;
  std::array<bool, config::kMaxOptimizerStates> squares = {};

  /// Bytes of all arrays of a page; a multiple of 64.
  std::int64_t bytes(int page) const;

  /// A page's arrays one after the other in `memory`, which has bytes(page) bytes.
  StateArrays arrays(int page, std::byte* memory) const;
};

class OptimizerStateStore {
 public:
  virtual ~OptimizerStateStore() = default;

  /// The device that updates `page`. In a pass its arrays are in the memory of that device while they are held.
  virtual c10::Device device(int page) const = 0;

  /// Whether its arrays do not move during a pass, held or not.
  virtual bool is_in_place(int page) const = 0;

  /// Returns `pages` in the order in which they are to be acquired, the same on all ranks.
  virtual std::vector<int> begin_pass(std::vector<int> pages) = 0;

  /// Errors: IoError when the state cannot be read, or differs from what was written.
  virtual StateArrays acquire(int page) = 0;

  /// Errors: IoError when the state cannot be written; inside of a pass possibly in a later call.
  virtual void release(int page, bool changed) = 0;

  virtual void end_pass() = 0;
  virtual void commit() = 0;
  virtual void abandon() = 0;

  /// Bytes read and written so far.
  virtual io::MoverStats traffic() const = 0;

  /// From now on reads and writes are added to `timeline`.
  virtual void observe(const std::shared_ptr<Timeline>& timeline) = 0;

  /// Adds zero-filled arrays, in memory, for a page without arrays, or for the next new page. Outside of a pass.
  virtual void add(int page, const PageShape& shape) = 0;

  /// Moves state from the device's memory to the host's until `reload`. Meanwhile pages can be acquired there.
  virtual void unload() = 0;
  virtual void reload() = 0;
};

/// Memory: one zero-filled buffer at `device` and one at `host` for the offloaded pages, in which each page's arrays
/// are contiguous. Only unload and reload move them.
std::unique_ptr<OptimizerStateStore> make_memory_state_store(const StateShape& shape, memory::MemoryPlace device,
                                                             memory::MemoryPlace host, std::shared_ptr<Ledger> ledger);

enum class Access { kRead, kWrite };

/// A page's arrays, held while this object exists. Errors: as acquire and, at the end, release.
class HeldState {
 public:
  HeldState(OptimizerStateStore& home, int page, Access access);
  ~HeldState() noexcept(false);
  HeldState(const HeldState&) = delete;
  HeldState& operator=(const HeldState&) = delete;

  const StateArrays& arrays() const { return arrays_; }
  c10::Device device() const { return arrays_.device; }

  /// Elements [begin, begin + numel) of a piece of a packed state, as fp32 on the host. Waits for the device.
  void read(int index, const StatePiece& piece, std::int64_t begin, float* out, std::int64_t numel) const;

  /// All of a piece of a packed state, from the host; values that it cannot represent are rounded by a hash of `key`
  /// and the position.
  void write(int index, const StatePiece& piece, const float* values, std::uint64_t key) const;

 private:
  optim::PackedState place(int index, const StatePiece& piece) const;

  OptimizerStateStore& state_store_;
  int page_;
  Access access_;
  int exceptions_;
  StateArrays arrays_;
};

}  // namespace zeropage::engine
