/// \file
/// Parameters that an optimizer object needs whole although ranks update parts of them. Each parameter has an owner,
/// and its parts are sent to the owner within an update:
///
///   1. When parameters are added, ranks exchange which parts they update. If one rank has all of a parameter, it is
///      the owner, and nothing of it is sent: see layout/whole_pages.h. The other parameters, the largest first, get
///      the rank that owns the fewest elements.
///   2. `gather` gives the owner the fp32 values and the gradient of the whole parameter, in its shape.
///   3. The optimizer changes the owner's copies. `agree`: ranks exchange whether this succeeded.
///   4. `scatter` copies the results into the parts.
///
/// Cost per update: each rank receives 12 bytes per element of the parameters that are divided over several ranks, and
/// the owner holds 8 bytes per element of those that it owns while the optimizer runs. If every rank has all
/// parameters, as at stage 0, nothing is sent, and the owner only saves the state.
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

/// The shape of a parameter and the order of its dimensions in memory.
struct WholeShape {
  std::vector<std::int64_t> extents;
  std::vector<std::int64_t> order;  ///< its dimensions in the order of memory, the outermost first

  static WholeShape of(const at::Tensor& parameter);
  std::int64_t numel() const;

  /// `value` [extents] as [numel], in the parameter's order in memory: a view where possible.
  at::Tensor flat(const at::Tensor& value) const;

  /// `flat` [numel] as [extents]: a view.
  at::Tensor shaped(const at::Tensor& flat) const;
};

/// The part of a parameter that a rank updates.
struct ParameterPart {
  std::int64_t offset = 0;  ///< first element, in the order of memory
  std::int64_t numel = 0;
};

/// fp32 values and gradient of a parameter or of a part of it; nullopt: no rank has a gradient.
using ValuesAndGradient = std::pair<at::Tensor, std::optional<at::Tensor>>;

class WholeParameters {
 public:
  /// `device`: the engine's, through whose memory parts are sent.
  WholeParameters(std::shared_ptr<comm::Communicator> communicator, c10::Device device);

  /// Collective. `shapes`: of the parameters that the optimizer needs whole, by index; known ones keep their owner.
  /// `mine`: the parts that this rank updates.
  void add(const std::map<int, WholeShape>& shapes, const std::map<int, ParameterPart>& mine);

  bool contains(int parameter) const { return placed_.contains(parameter); }
  const WholeShape& shape(int parameter) const { return placed_.at(parameter).shape; }

  /// The rank that updates the parameter, or that saves its state when all ranks update it.
  int owner(int parameter) const { return placed_.at(parameter).owner; }

  /// Whether its parts are sent to the owner.
  bool is_sent(int parameter) const { return placed_.at(parameter).is_sent; }

  /// Parameters that the optimizer of this rank updates, ascending.
  std::vector<int> seen() const;

  /// `mine`: flat parts of this rank. Returns the parameters that its optimizer updates, whole and in their shapes.
  /// Collective.
  std::map<int, ValuesAndGradient> gather(const std::map<int, ValuesAndGradient>& mine);

  /// `whole`: the values of `gather` after the update of this rank's optimizer, which may have replaced the tensors.
  /// Collective.
  void scatter(std::map<int, at::Tensor> whole, const std::map<int, ValuesAndGradient>& mine);

  /// A new fp32 tensor of the parameter's shape with the owner's `mine`; nullopt when the owner has none. Collective.
  std::optional<at::Tensor> from_owner(int parameter, const std::optional<at::Tensor>& mine);

  /// Returns whether all ranks succeeded. Collective. `failure`: that of this rank; empty: none. Errors: PeerError when
  /// another rank failed and this one did not.
  bool agree(const std::string& failure);

 private:
  /// A parameter, and the elements of it that each rank updates.
  struct Placed {
    WholeShape shape;
    std::map<int, ParameterPart> parts;  // by rank
    int owner = 0;
    bool is_sent = false;
  };
  /// The state of a parameter in an update, over all ranks.
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

  /// Sends the parts of all ranks of the parameters of a chunk to every rank. Memory: the part of one rank. Collective.
  void exchange_chunk(const std::vector<int>& chunk, const PartOf& part_of, const OwnValues& own,
                      const Receive& receive);

  std::shared_ptr<comm::Communicator> communicator_;
  c10::Device device_;
  bool kept_on_host_ = false;  ///< values of this rank, for another device
  std::map<int, Placed> placed_;
};

}  // namespace zeropage::session
