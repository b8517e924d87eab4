/// \file
/// Parameters that an optimizer object sees whole, where ranks update parts of them. Each has an owner, and its parts
/// are sent to the owner within an update:
///
///   1. When parameters are added, ranks tell each other which parts they update. If one rank has all of a parameter,
///      it is the owner, and nothing of it is sent: see layout/whole_pages.h. The others, the largest first, go to the
///      rank that owns least.
///   2. `gather` gives the owner fp32 values and gradient of the whole parameter, in its shape.
///   3. The optimizer changes the owner's copies. `agree`: ranks tell each other whether that succeeded.
///   4. `scatter` copies the results into the parts.
///
/// Cost per update: each rank receives 12 bytes per element of the parameters that lie on several ranks, and the owner
/// holds 8 bytes per element of those that it owns while the optimizer runs. Where every rank has all parameters, as at
/// stage 0, nothing is sent, and owners only determine who saves their state.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "zeropage/comm/communicator.h"

namespace zeropage::session {

/// How all elements of a parameter, as they lie in memory, are a tensor of its shape.
struct WholeShape {
  std::vector<std::int64_t> extents;
  std::vector<std::int64_t> order;  ///< its dimensions as they lie in memory, the outermost first

  static WholeShape of(const at::Tensor& parameter);
  std::int64_t numel() const;

  /// `value` [extents] as [numel], in the order in which the parameter lies in memory: a view where that is possible.
  at::Tensor flat(const at::Tensor& value) const;

  /// `flat` [numel] as [extents]: a view.
  at::Tensor shaped(const at::Tensor& flat) const;
};

/// What a rank updates of a parameter.
struct ParameterPart {
  std::int64_t offset = 0;  ///< first element, as the parameter lies in memory
  std::int64_t numel = 0;
};

/// fp32 values and gradient of a parameter or of a part of it; nullopt: no rank has a gradient.
using ValuesAndGradient = std::pair<at::Tensor, std::optional<at::Tensor>>;

class WholeParameters {
 public:
  /// `device`: the engine's, through whose memory parts are sent.
  WholeParameters(std::shared_ptr<comm::Communicator> communicator, c10::Device device);

  /// Collective. `shapes`: of the parameters that the optimizer sees whole, by index; those that are known already keep
  /// their owner. `mine`: what this rank updates of each.
  void add(const std::map<int, WholeShape>& shapes, const std::map<int, ParameterPart>& mine);

  bool contains(int parameter) const { return placed_.contains(parameter); }
  const WholeShape& shape(int parameter) const { return placed_.at(parameter).shape; }

  /// The rank that updates the parameter, or saves its state when all of them update it.
  int owner(int parameter) const { return placed_.at(parameter).owner; }

  /// Whether its parts are sent to the owner.
  bool is_sent(int parameter) const { return placed_.at(parameter).is_sent; }

  /// Parameters that the optimizer of this rank updates, ascending.
  std::vector<int> seen() const;

  /// `mine`: flat parts of this rank. Returns what its optimizer updates, whole and in shape. Collective.
  std::map<int, ValuesAndGradient> gather(const std::map<int, ValuesAndGradient>& mine);

  /// `whole`: what the optimizer of this rank has made of `gather`'s values, which it may have replaced. Collective.
  void scatter(std::map<int, at::Tensor> whole, const std::map<int, ValuesAndGradient>& mine);

  /// A tensor of the parameter's shape, new, in fp32: the owner's `mine`; nullopt when it has none. Collective.
  std::optional<at::Tensor> from_owner(int parameter, const std::optional<at::Tensor>& mine);

  /// Whether all succeeded, on all ranks. Collective. `failure`: of this rank; empty: there was none. Errors: PeerError
  /// where there was one on another rank, and none on this one.
  bool agree(const std::string& failure);

 private:
  /// A parameter, and which rank updates which of its elements.
  struct Placed {
    WholeShape shape;
    std::map<int, ParameterPart> parts;  // by rank
    int owner = 0;
    bool is_sent = false;
  };
  /// What is known of a parameter in an update, on any rank.
  enum class Known : char { kAbsent = 0, kWithoutGradient = 1, kWithGradient = 2 };
  using Piece = std::pair<int, ParameterPart>;
  using PartOf = std::function<std::optional<ParameterPart>(const Placed& placed, int rank)>;
  using OwnValues = std::function<at::Tensor(int parameter)>;
  using Receive = std::function<void(int parameter, const ParameterPart& part, const at::Tensor& values)>;

  bool any_is_sent() const;
  std::vector<std::string> exchange(const std::string& mine);
  void broadcast(const at::Tensor& tensor, int root);
  std::map<int, Known> exchange_known(const std::map<int, ValuesAndGradient>& mine);
  std::vector<int> sent(const std::map<int, Known>& known, Known least) const;
  std::vector<std::vector<int>> chunks(const std::vector<int>& parameters) const;

  /// Every rank receives what each rank has of the parameters of a chunk. Memory: what one rank has. Collective.
  void exchange_chunk(const std::vector<int>& chunk, const PartOf& part_of, const OwnValues& own,
                      const Receive& receive);

  std::shared_ptr<comm::Communicator> communicator_;
  c10::Device device_;
  std::map<int, Placed> placed_;
};

}  // namespace zeropage::session
