/// \file
/// Where the optimizer's state (fp32 masters, and moments in fp32 or packed) of every page lives when it is not in use.
/// The update, checkpoints and whatever else touches that state hold one page's arrays at a time and do not know where
/// they come from.
///
///   1. begin_pass(pages): these will be acquired, each once. A home that is far away starts to read ahead. It says in
///      which order it wants them.
///   2. acquire(page): waits until the page's arrays are in memory. They stay where they are until release.
///   3. release(page, changed): what changed is on its way home, behind the pages that follow.
///   4. end_pass(): waits until everything that changed is at home. commit() makes it stand; abandon(), which is for
///      what lives on a drive, takes it back. A second pass may come before that.
///
/// Outside of a pass any page may be acquired at any time (checkpoints, values that users write): then nothing is ahead
/// of it, and release(changed) returns when it is at home. One page at a time, one thread; in memory two threads may
/// hold different pages.
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

/// A parameter's part of a range. Blocks of packed states begin with each.
struct StatePiece {
  int parameter = 0;
  std::int64_t parameter_offset = 0;  ///< where it starts in the parameter
  std::int64_t offset = 0;            ///< from the start of the range
  std::int64_t numel = 0;
  std::int64_t block = 0;  ///< the first of its blocks
};

/// The pieces of elements [begin, end) of a page.
std::vector<StatePiece> pieces_of(const layout::Layout& layout, int page, std::int64_t begin, std::int64_t end);

/// The state of the range of a page that this rank updates, from its first element on.
struct StateArrays {
  static constexpr int kMaster = -1;

  float* master = nullptr;  ///< null on fp32 pages, whose parameter is its own master
  std::array<float*, config::kMaxOptimizerStates> states = {};  ///< as many as the optimizer keeps, if they are fp32
  config::StateDtype dtype = config::StateDtype::kFloat32;
  std::array<optim::PackedState, config::kMaxOptimizerStates> packed = {};  ///< if they are not
  std::array<bool, config::kMaxOptimizerStates> squares = {};               ///< optim::is_sum_of_squares

  c10::Device device = c10::kCPU;    ///< in whose memory they are
  std::span<std::byte> memory = {};  ///< of all of these

  /// Whether the master (kMaster) or the state of that index is fp32, in `array`.
  bool is_wide(int index) const { return index == kMaster || dtype == config::StateDtype::kFloat32; }
  float* array(int index) const { return index == kMaster ? master : states[index]; }

  /// The same arrays in a copy of `memory` that begins at `target`.
  StateArrays moved_to(std::byte* target, c10::Device target_device) const;
};

/// What a home keeps of one page; see StateShape.
struct PageShape {
  std::int64_t numel = 0;
  std::int64_t blocks = 0;
  bool offloaded = false;
  bool masters = false;
};

/// What a home keeps.
struct StateShape {
  std::vector<std::int64_t> numel;   ///< per page: elements that this rank updates; 0: the page is not trained
  std::vector<std::int64_t> blocks;  ///< per page: of packed states, more than any piece's
  std::vector<bool> offloaded;       ///< per page: it lives on the host
  std::vector<bool> masters;         ///< per page: it has some
  int states = 0;
  config::StateDtype dtype = config::StateDtype::kFloat32;
  std::array<bool, config::kMaxOptimizerStates> squares = {};

  /// Of all arrays of a page; a multiple of 64.
  std::int64_t bytes(int page) const;

  /// A page's arrays one after the other in `memory`, of so many bytes.
  StateArrays arrays(int page, std::byte* memory) const;
};

class OptimizerStateStore {
 public:
  virtual ~OptimizerStateStore() = default;

  /// Where the update of `page` runs. In a pass its arrays are in the memory of that device while they are held.
  virtual c10::Device device(int page) const = 0;

  /// Whether its arrays are in one place during a pass, held or not.
  virtual bool stays(int page) const = 0;

  /// Returns `pages` in the order in which they are to be acquired, the same on all ranks.
  virtual std::vector<int> begin_pass(std::vector<int> pages) = 0;

  /// Errors: IoError when the state cannot be read, or differs from what was written.
  virtual StateArrays acquire(int page) = 0;

  /// Errors: IoError when the state cannot be written; inside of a pass perhaps at a later call.
  virtual void release(int page, bool changed) = 0;

  virtual void end_pass() = 0;
  virtual void commit() = 0;
  virtual void abandon() = 0;

  /// What has been read and written so far.
  virtual io::MoverStats traffic() const = 0;

  /// From now on that is noted there.
  virtual void observe(const std::shared_ptr<Timeline>& timeline) = 0;

  /// Zero-filled arrays, in memory, for a page that had none, or that is the next one. Outside of a pass.
  virtual void add(int page, const PageShape& shape) = 0;

  /// Moves what is in the device's memory to the host's until `reload`. Pages can be acquired there meanwhile.
  virtual void unload() = 0;
  virtual void reload() = 0;
};

/// Memory: one zero-filled buffer at `device` and one at `host` for the offloaded pages, in which each page's arrays
/// lie one after the other. Nothing moves but by unload and reload.
std::unique_ptr<OptimizerStateStore> make_memory_state_store(const StateShape& shape, memory::MemoryPlace device,
                                                             memory::MemoryPlace host, std::shared_ptr<Ledger> ledger);

enum class Access { kRead, kWrite };

/// A page's arrays, held while this lives. Errors: as acquire and, at the end, release.
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

  /// All of a piece of a packed state, from the host; values between two that it can hold are rounded by a hash of
  /// `key` and place.
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
