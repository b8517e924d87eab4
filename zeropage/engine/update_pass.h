/// \file
/// Where the arrays of a page are in an update, and how they get to the memory in which it runs. Nothing else in the
/// engine knows:
///
///   array            where it is                                             and in an update
///   master, states   the optimizer state store                               where the store holds them
///   gradient         the reducer's sum, or tensors of autograd (kept), or    there, or in a slot of Staging, or in a
///                    the drive                                               buffer of the drive
///   parameter        the pager's shard, or a whole page, or the drive        there, or in a slot of Staging, or in a
///                                                                            buffer of the drive
///
/// A pass over pages, of which the update is one, and Lamb's norms and copies for the program's optimizer are others:
///
///   1. begin(pages, with_gradients) returns the order of the pages; what is on drives is read ahead in it.
///   2. fetch(page) starts to copy what is in another memory; one page ahead of its update.
///   3. HeldArrays(pass, page, ...) waits for the page's arrays, and holds them.
///   4. write_back(page, runs) starts to copy what was changed to where it belongs.
///   5. end() waits for that.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "zeropage/engine/model_state.h"
#include "zeropage/engine/staging.h"
#include "zeropage/optim/update.h"
#include "zeropage/reduce/reducer.h"

namespace zeropage::engine {

/// What becomes of the parameter in an update: kReplaced, when all of it is rounded from masters.
enum class ParameterUse { kRead, kChanged, kReplaced };

/// kNone: nobody needs the gradient, which may not be there.
enum class GradientUse { kRead, kNone };

class UpdatePass {
 public:
  /// `state` and `reducer` outlive this. `host`, `travels`: as Staging.
  UpdatePass(const ModelState& state, const reduce::Reducer& reducer, c10::Device device, memory::MemoryPlace host,
             const std::shared_ptr<Ledger>& ledger, Travels travels = Travels::kBetweenMemories);

  const ModelState& state() const { return state_; }
  const reduce::Reducer& reducer() const { return reducer_; }

  /// Room for pages that are trained since lately. Between passes.
  void grow() { staging_.grow(); }

  /// `with_gradients`: those of the pages whose gradient will be read, ascending. Returns `pages` in the order in which
  /// they are to be held, the same on all ranks. Errors: IoError.
  std::vector<int> begin(std::vector<int> pages, const std::vector<int>& with_gradients);

  void fetch(int page) { staging_.fetch(page); }

  /// `runs`: elements of this rank's range of the page that have changed.
  void write_back(int page, const std::vector<Segment>& runs) { staging_.write_back(page, runs); }

  /// Errors: IoError, TimeoutError, PeerError.
  void end();

  /// Whether the page's arrays are where its update runs, so that it may be held together with others.
  bool is_in_place(int page) const;

  /// Where a parameter's gradient [numel] is, for work on the current stream, unless it is in the range that HeldArrays
  /// has: gradients that the reducer keeps (Reducer::keeps). Else null.
  const void* kept_gradient(int page, int parameter) const;

 private:
  friend class HeldArrays;

  const ModelState& state_;
  const reduce::Reducer& reducer_;
  Staging staging_;
};

/// What an update of this rank's range of a page works on, held while this lives. All arrays begin at the range's first
/// element and have OwnedRange::numel elements.
class HeldArrays {
 public:
  /// Waits until the page has arrived in the memory of its update. With kRead, `arrays().parameter` is there only where
  /// it is its own master. `states`: what becomes of the master and the states. Errors: IoError, TimeoutError.
  HeldArrays(UpdatePass& pass, int page, ParameterUse use, Access states = Access::kWrite,
             GradientUse gradient = GradientUse::kRead);

  const optim::Arrays& arrays() const { return arrays_; }

  /// Whether the gradient is where the reducer has it, so that nobody else needs it once it was read.
  bool gradient_in_place() const { return gradient_in_place_; }

  c10::Device device() const { return held_.device(); }
  std::span<std::byte> state_memory() const { return held_.arrays().memory; }

 private:
  Staging::Location place_;
  std::optional<HeldParameter> parameter_;  // absent: it is in memory, or nobody needs it
  HeldState held_;
  std::optional<io::HeldPage> gradient_;  // absent: it is in memory
  bool gradient_in_place_ = false;
  optim::Arrays arrays_;
};

}  // namespace zeropage::engine
