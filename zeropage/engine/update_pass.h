/// \file
/// The places of a page's arrays in an update, and their copies to the memory in which it runs. No other code in the
/// engine knows them:
///
///   array            where it is                                             and in an update
///   master, states the optimizer state store in the store's memory
///   gradient         the reducer's sum, or tensors of autograd (kept), or    there, or in a slot of Staging, or in a
///                    the drive                                               buffer of the drive
///   parameter        the pager's shard, or a whole page, or the drive        there, or in a slot of Staging, or in a
///                                                                            buffer of the drive
///
/// A pass over pages: the update, Lamb's norms, or the copies for the program's optimizer:
///
///   1. begin(pages, with_gradients) returns the order of the pages, in which arrays on drives are read ahead.
///   2. fetch(page) starts to copy arrays from other memories; one page ahead of its update.
///   3. HeldArrays(pass, page, ...) waits for the page's arrays, and holds them.
///   4. write_back(page, runs) starts to copy changed arrays back to their places.
///   5. end() waits for these copies.
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

/// The use of the parameter in an update: kReplaced, when all of it is rounded from masters.
enum class ParameterUse { kRead, kChanged, kReplaced };

/// kNone: the gradient is not needed, and may not exist.
enum class GradientUse { kRead, kNone };

class UpdatePass {
 public:
  /// `state` and `reducer` must outlive this object. `host`, `copied_pages`: as for Staging.
  UpdatePass(const ModelState& state, const reduce::Reducer& reducer, c10::Device device, memory::MemoryPlace host,
             const std::shared_ptr<Ledger>& ledger, CopiedPages copied_pages = CopiedPages::kBetweenMemories);

  const ModelState& state() const { return state_; }
  const reduce::Reducer& reducer() const { return reducer_; }

  /// Allocates memory for newly trained pages. Between passes.
  void grow() { staging_.grow(); }

  /// `with_gradients`: the pages whose gradients will be read, ascending. Returns `pages` in the order in which they
  /// must be held, the same on all ranks. Errors: IoError.
  std::vector<int> begin(std::vector<int> pages, const std::vector<int>& with_gradients);

  void fetch(int page) { staging_.fetch(page); }

  /// `runs`: elements of this rank's range of the page that have changed.
  void write_back(int page, const std::vector<UpdateSegment>& runs) { staging_.write_back(page, runs); }

  /// Errors: IoError, TimeoutError, PeerError.
  void end();

  /// Whether the page's arrays are in the memory of its update, so that it may be held together with others.
  bool is_in_place(int page) const;

  /// The address of a parameter's gradient [numel] that the reducer keeps (Reducer::keeps), for work on the current
  /// stream. Null for gradients in the range of HeldArrays.
  const void* kept_gradient(int page, int parameter) const;

 private:
  friend class HeldArrays;

  const ModelState& state_;
  const reduce::Reducer& reducer_;
  Staging staging_;
};

/// The arrays of an update of this rank's range of a page, held while this object exists. All arrays begin at the
/// range's first element and have OwnedRange::numel elements.
class HeldArrays {
 public:
  /// Waits until the page has arrived in the memory of its update. With kRead, `arrays().parameter` is set only if it
  /// is its own master. `states`: the use of the master and the states. Errors: IoError, TimeoutError.
  HeldArrays(UpdatePass& pass, int page, ParameterUse use, Access states = Access::kWrite,
             GradientUse gradient = GradientUse::kRead);

  const optim::Arrays& arrays() const { return arrays_; }

  /// Whether the gradient is in the reducer's memory, so that it is not needed after it was read.
  bool gradient_in_place() const { return gradient_in_place_; }

  c10::Device device() const { return held_.device(); }
  std::span<std::byte> state_memory() const { return held_.arrays().memory; }

 private:
  Staging::Location place_;
  std::optional<HeldParameter> parameter_;  // absent: it is in memory, or not needed
  HeldState held_;
  std::optional<io::HeldPage> gradient_;  // absent: it is in memory
  bool gradient_in_place_ = false;
  optim::Arrays arrays_;
};

}  // namespace zeropage::engine
