/// \file
/// Building a model that is larger than memory. While an `Init` exists, tensors that this thread makes are kept within
/// the live limit: the least recently used ones are split into shards, one per rank, and any operator that touches such
/// a tensor gathers it again. The engine then takes the parameters over page by page, so no rank ever holds the whole
/// model.
///
///     Model model = nullptr;
///     {
///       engine::Init scope(config, communicator, device);
///       model = Model(options);  // any code; the same on all ranks
///     }
///     Engine engine(parameters, groups, config, communicator, device);
///
/// Rank 0's values count: a tensor gets them when it is sharded, and every parameter when the engine is made. Until
/// then values keep their original type, so 16-bit training starts from exact fp32 masters. All ranks must run the same
/// code until the engine is made; different code on a rank is an error that names the tensor and the operator.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <memory>
#include <vector>

#include "zeropage/comm/communicator.h"
#include "zeropage/config/config.h"

namespace zeropage::paging {
class ResultWatcher;
}

namespace zeropage::engine {

class DeferredPages;

/// A scope of the thread that makes it. Scopes nest: the innermost one applies. Making an engine also ends it.
class Init {
 public:
  /// Has no cost and no effect if parameters are not sharded: below stage 3, or with one rank. With parameters on a
  /// drive, shards go there, also with one rank. The live limit is `stage3_max_live_parameters` elements of fp32;
  /// tensors of at most `stage3_param_persistence_threshold` such elements (which the engine does not shard either), or
  /// of less than 4 KiB, are not affected.
  Init(const config::Config& config, std::shared_ptr<comm::Communicator> communicator, c10::Device device);
  ~Init();
  Init(const Init&) = delete;
  Init& operator=(const Init&) = delete;

  /// Ends the scope before the object's destruction; a second call has no effect. Tensors made in it do not change.
  void leave();

  /// Adopts a tensor that was made outside the scope, as if it had been made here; it may be sharded immediately.
  /// Called by all ranks in the same way. Tensors of other devices, or that are too small, are not changed. Errors:
  /// PeerError, TimeoutError.
  void adopt(const at::Tensor& tensor);

 private:
  std::shared_ptr<DeferredPages> pages_;          // null: nothing to do
  std::shared_ptr<paging::ResultWatcher> outer_;  // of the enclosing scope
};

/// True for tensors of an Init scope that no engine has taken over.
bool is_deferred(const at::Tensor& tensor);

/// Turns a deferred tensor (for example a large buffer) into an ordinary one that is unsharded on every rank; others
/// are not changed. Called by all ranks in the same way. Errors: PeerError, TimeoutError.
void settle(const at::Tensor& tensor);

/// Makes the deferred ones among `tensors` resident until `release_deferred` of the same list. Called by all ranks in
/// the same way. Errors: PeerError, TimeoutError.
void gather_deferred(const std::vector<at::Tensor>& tensors);

/// Ends `gather_deferred`. With `modifier_rank` >= 0 every rank gets that rank's values (collective).
void release_deferred(const std::vector<at::Tensor>& tensors, int modifier_rank = -1);

}  // namespace zeropage::engine
