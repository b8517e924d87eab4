/// \file
/// Where the optimizer's fp32 state (masters and moments) of every page lives when it is not in use. The update, checkpoints and
/// whatever else touches that state hold one page's arrays at a time and do not know where they come from.
///
///   1. begin_pass(pages): these will be acquired, each once. A home that is far away starts to read ahead. It says in which
///      order it wants them.
///   2. acquire(page): waits until the page's arrays are in memory. They stay where they are until release.
///   3. release(page, changed): what changed is on its way home, behind the pages that follow.
///   4. end_pass(): waits until everything that changed is at home.
///
/// Outside of a pass any page may be acquired at any time (checkpoints, values that users write): then nothing is ahead of it, and
/// release(changed) returns when it is at home. One page at a time, one thread.
#pragma once

#include "zeropage/paging/torch_config.h"

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "zeropage/base/ledger.h"
#include "zeropage/config/config.h"
#include "zeropage/paging/device_buffer.h"

namespace zeropage::engine {

/// The fp32 state of the range of a page that this rank updates, from its first element on.
struct StateArrays {
  static constexpr int kMaster = -1;

  float* master = nullptr;  ///< null on fp32 pages, whose parameter is its own master
  std::array<float*, config::kMaxOptimizerStates> states = {};  ///< as many as the optimizer keeps

  /// The master (kMaster) or the state of that index.
  float* array(int index) const { return index == kMaster ? master : states[index]; }
};

/// What a home keeps.
struct StateShape {
  std::vector<std::int64_t> numel;  ///< per page: elements that this rank updates; 0: the page is not trained
  std::vector<bool> offloaded;      ///< per page: it lives on the host
  bool masters = false;
  int states = 0;

  std::int64_t arrays() const { return states + (masters ? 1 : 0); }
};

class StateHome {
 public:
  virtual ~StateHome() = default;

  /// The device whose memory the arrays of `page` are in while they are held: its update runs there.
  virtual c10::Device device(int page) const = 0;

  /// Returns `pages` in the order in which they are to be acquired, the same on all ranks.
  virtual std::vector<int> begin_pass(std::vector<int> pages) = 0;

  /// Errors: IoError when the state cannot be read, or differs from what was written.
  virtual StateArrays acquire(int page) = 0;

  /// Errors: IoError when the state cannot be written; inside of a pass perhaps at a later call.
  virtual void release(int page, bool changed) = 0;

  virtual void end_pass() = 0;

  /// Moves what is in the device's memory to the host's until `reload`. Pages can be acquired there meanwhile.
  virtual void unload() = 0;
  virtual void reload() = 0;
};

/// Memory: one zero-filled buffer at `device` and one at `host` for the offloaded pages, in which each page's arrays lie one after
/// the other. Nothing moves but by unload and reload.
std::unique_ptr<StateHome> make_memory_home(const StateShape& shape, paging::MemoryPlace device,
                                            paging::MemoryPlace host, std::shared_ptr<Ledger> ledger);

enum class Access { kRead, kWrite };

/// A page's arrays, held while this lives. Errors: as acquire and, at the end, release.
class HeldState {
 public:
  HeldState(StateHome& home, int page, Access access);
  ~HeldState() noexcept(false);
  HeldState(const HeldState&) = delete;
  HeldState& operator=(const HeldState&) = delete;

  const StateArrays& arrays() const { return arrays_; }
  c10::Device device() const { return home_.device(page_); }

 private:
  StateHome& home_;
  int page_;
  Access access_;
  int exceptions_;
  StateArrays arrays_;
};

}  // namespace zeropage::engine
