/// \file
/// Building a model that is larger than memory. While an `Init` lives, tensors that this thread makes are kept within
/// the live
/// limit: the least recently used ones are cut into shards, one per rank, and any operator that touches one of those
/// gathers it again. The engine then takes the parameters over page by page, so no rank ever holds the whole model.
///
///     Model model = nullptr;
///     {
///       engine::Init scope(config, communicator, device);
///       model = Model(options);  // any code; the same on all ranks
///     }
///     Engine engine(parameters, groups, config, communicator, device);
///
/// Rank 0's values win: a tensor that is cut takes them, and so does every parameter when the engine is made. Values
/// stay in the type they were made in until then, so 16-bit training starts from exact fp32 masters. All ranks must run
/// the same code until the engine is made; a rank that goes its own way ends in an error that names the tensor and the
/// operator.
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

/// A scope of the thread that makes it. Scopes nest: the innermost one counts. Making an engine ends it, too.
class Init {
 public:
  /// Costs nothing and does nothing when parameters are not sharded: below stage 3, or with one rank. With parameters
  /// on a drive shards go there, with one rank as well. The live limit is
  /// `stage3_max_live_parameters` elements of fp32; tensors of at most `stage3_param_persistence_threshold` such
  /// elements (which the engine keeps whole as well), or of less than 4 KiB, are left alone.
  Init(const config::Config& config, std::shared_ptr<comm::Communicator> communicator, c10::Device device);
  ~Init();
  Init(const Init&) = delete;
  Init& operator=(const Init&) = delete;

  /// Ends the scope before the object goes; a second time does nothing. Tensors made in it stay as they are.
  void leave();

  /// Takes in a tensor that was made outside the scope, as if it had been made here; it may be cut at once. All ranks
  /// alike. Tensors of other devices, or that are too small, are left alone. Errors: PeerError, TimeoutError.
  void adopt(const at::Tensor& tensor);

 private:
  std::shared_ptr<DeferredPages> pages_;          // null: nothing to do
  std::shared_ptr<paging::ResultWatcher> outer_;  // of the enclosing scope
};

/// True for tensors of an Init scope that no engine has taken over.
bool is_deferred(const at::Tensor& tensor);

/// Makes a deferred tensor (a large buffer, say) an ordinary one that stays whole on every rank; others are left alone.
/// All ranks alike. Errors: PeerError, TimeoutError.
void settle(const at::Tensor& tensor);

/// Makes the deferred ones among `tensors` resident until `release_deferred` of the same list. All ranks alike. Errors:
/// PeerError, TimeoutError.
void gather_deferred(const std::vector<at::Tensor>& tensors);

/// Ends `gather_deferred`. With `modifier_rank` >= 0 every rank takes that rank's values (collective).
void release_deferred(const std::vector<at::Tensor>& tensors, int modifier_rank = -1);

}  // namespace zeropage::engine
