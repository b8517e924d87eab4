#include "zeropage/session/whole_parameters.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <sstream>

#include "zeropage/base/error.h"
#include "zeropage/checkpoint/exchange.h"
#include "zeropage/paging/device_wait.h"

namespace zeropage::session {
namespace {

constexpr std::int64_t kChunkNumel = 1 << 22;  // of parameters that are sent together

}  // namespace

WholeShape WholeShape::of(const at::Tensor& parameter) {
  WholeShape shape{parameter.sizes().vec(), std::vector<std::int64_t>(parameter.dim())};
  std::iota(shape.order.begin(), shape.order.end(), 0);
  std::ranges::stable_sort(shape.order, std::greater{}, [&](std::int64_t dim) { return parameter.stride(dim); });
  return shape;
}

std::int64_t WholeShape::numel() const {
  return std::accumulate(extents.begin(), extents.end(), std::int64_t{1}, std::multiplies{});
}

at::Tensor WholeShape::flat(const at::Tensor& value) const { return value.permute(order).reshape(-1); }

at::Tensor WholeShape::shaped(const at::Tensor& flat) const {
  std::vector<std::int64_t> laid_out;
  std::vector<std::int64_t> place(order.size());
  for (std::size_t i = 0; i < order.size(); ++i) {
    laid_out.push_back(extents[order[i]]);
    place[order[i]] = static_cast<std::int64_t>(i);
  }
  return flat.view(laid_out).permute(place);
}

WholeParameters::WholeParameters(std::shared_ptr<comm::Communicator> communicator, c10::Device device)
    : communicator_(std::move(communicator)), device_(device) {}

void WholeParameters::add(const std::map<int, WholeShape>& shapes, const std::map<int, ParameterPart>& mine) {
  std::vector<int> added;
  std::string lines;
  for (const auto& [parameter, shape] : shapes) {
    if (contains(parameter)) continue;
    added.push_back(parameter);
    const auto part = mine.find(parameter);
    if (part != mine.end()) lines += fmt::format("{} {} {}\n", parameter, part->second.offset, part->second.numel);
  }
  std::map<int, std::map<int, ParameterPart>> parts;
  const auto strings = exchange(lines);
  for (std::size_t rank = 0; rank < strings.size(); ++rank) {
    std::istringstream text(strings[rank]);
    int parameter = 0;
    ParameterPart part;
    while (text >> parameter >> part.offset >> part.numel) parts[parameter][static_cast<int>(rank)] = part;
  }
  std::vector<std::int64_t> owned(communicator_->size(), 0);
  for (const auto& [parameter, placed] : placed_) owned[placed.owner] += placed.shape.numel();
  std::ranges::sort(added, {}, [&](int parameter) {
    return std::tuple(parts[parameter].size() > 1, -shapes.at(parameter).numel(), parameter);
  });
  for (const int parameter : added) {
    Placed placed{shapes.at(parameter), parts[parameter]};
    const std::int64_t numel = placed.shape.numel();
    placed.owner = placed.parts.size() == 1 ? placed.parts.begin()->first
                                            : static_cast<int>(std::ranges::min_element(owned) - owned.begin());
    owned[placed.owner] += numel;
    placed.is_sent = std::ranges::any_of(placed.parts, [&](const auto& part) { return part.second.numel != numel; });
    placed_[parameter] = std::move(placed);
  }
}

std::vector<int> WholeParameters::seen() const {
  std::vector<int> seen;
  const int rank = communicator_->rank();
  for (const auto& [parameter, placed] : placed_) {
    if (placed.is_sent ? placed.owner == rank : placed.parts.contains(rank)) seen.push_back(parameter);
  }
  return seen;
}

std::map<int, ValuesAndGradient> WholeParameters::gather(const std::map<int, ValuesAndGradient>& mine) {
  std::map<int, ValuesAndGradient> whole;
  for (const auto& [parameter, values] : mine) {
    if (!is_sent(parameter)) whole[parameter] = values;
  }
  const auto known = exchange_known(mine);
  for (const int parameter : sent(known, Known::kWithoutGradient)) {
    if (owner(parameter) != communicator_->rank()) continue;
    const auto own = mine.find(parameter);
    const auto options = at::TensorOptions(at::kFloat).device(own == mine.end() ? device_ : own->second.first.device());
    auto& [values, gradient] = whole[parameter];
    values = at::empty(shape(parameter).numel(), options);
    if (known.at(parameter) == Known::kWithGradient) gradient = at::empty(shape(parameter).numel(), options);
  }
  const PartOf part_of = [](const Placed& placed, int rank) {
    const auto part = placed.parts.find(rank);
    return part == placed.parts.end() ? std::nullopt : std::optional(part->second);
  };
  for (const bool gradients : {false, true}) {
    const OwnValues own = [&](int parameter) {
      return gradients ? *mine.at(parameter).second : mine.at(parameter).first;
    };
    const Receive receive = [&](int parameter, const ParameterPart& part, const at::Tensor& values) {
      if (owner(parameter) != communicator_->rank()) return;
      const auto& to = whole.at(parameter);
      (gradients ? *to.second : to.first).narrow(0, part.offset, part.numel).copy_(values);
    };
    for (const auto& chunk : chunks(sent(known, gradients ? Known::kWithGradient : Known::kWithoutGradient))) {
      exchange_chunk(chunk, part_of, own, receive);
    }
  }
  for (auto& [parameter, values] : whole) {
    values.first = shape(parameter).shaped(values.first);
    if (values.second) values.second = shape(parameter).shaped(*values.second);
  }
  return whole;
}

void WholeParameters::scatter(std::map<int, at::Tensor> whole, const std::map<int, ValuesAndGradient>& mine) {
  for (auto& [parameter, values] : whole) {
    const at::Tensor flat = shape(parameter).flat(values.detach());
    if (is_sent(parameter)) {
      values = flat.to(at::kFloat);
    } else if (at::Tensor own = mine.at(parameter).first; flat.data_ptr() != own.data_ptr()) {
      own.copy_(flat);
    }
  }
  const PartOf all_of_owner = [](const Placed& placed, int rank) {
    return rank == placed.owner ? std::optional(ParameterPart{0, placed.shape.numel()}) : std::nullopt;
  };
  const Receive receive = [&](int parameter, const ParameterPart&, const at::Tensor& values) {
    const auto own = mine.find(parameter);
    if (own == mine.end()) return;
    const ParameterPart& part = placed_.at(parameter).parts.at(communicator_->rank());
    own->second.first.copy_(values.narrow(0, part.offset, part.numel));
  };
  for (const auto& chunk : chunks(sent(exchange_known(mine), Known::kWithoutGradient))) {
    exchange_chunk(
        chunk, all_of_owner, [&](int parameter) { return whole.at(parameter); }, receive);
  }
}

std::optional<at::Tensor> WholeParameters::from_owner(int parameter, const std::optional<at::Tensor>& mine) {
  const auto& [shape, parts, owner, is_sent] = placed_.at(parameter);
  if (!is_sent &&
      parts.size() == static_cast<std::size_t>(communicator_->size())) {  // every rank has the whole parameter
    if (!mine) return std::nullopt;
    return mine->detach().to(at::kFloat, /*non_blocking=*/false, /*copy=*/true);
  }
  const auto strings = exchange(mine ? "it is here" : "");
  if (std::ranges::all_of(strings, &std::string::empty)) return std::nullopt;
  at::Tensor received = at::empty(shape.extents, at::TensorOptions(at::kFloat).device(device_));
  if (mine) received.copy_(mine->detach());
  broadcast(received, owner);
  return received;
}

bool WholeParameters::agree(const std::string& failure) {
  if (!any_is_sent()) return failure.empty();
  const auto failures = checkpoint::lines_of_failures(exchange(failure));
  if (!failures.empty() && failure.empty()) {
    throw PeerError("the optimizer's step failed, so that no rank has applied it:" + failures);
  }
  return failures.empty();
}

bool WholeParameters::any_is_sent() const {
  return std::ranges::any_of(placed_, [](const auto& placed) { return placed.second.is_sent; });
}

std::vector<std::string> WholeParameters::exchange(const std::string& mine) {
  return checkpoint::exchange_strings(*communicator_, mine);
}

void WholeParameters::broadcast(const at::Tensor& tensor, int root) {
  const auto bytes = static_cast<std::int64_t>(tensor.nbytes());
  communicator_->broadcast(tensor.data_ptr(), bytes, root, {"parameters that an optimizer sees whole"})->wait();
}

/// Notes where this rank keeps its values. Exchanges which parameters have gradients: a rank without elements of a
/// parameter cannot know whether others have a gradient.
std::map<int, WholeParameters::Known> WholeParameters::exchange_known(const std::map<int, ValuesAndGradient>& mine) {
  kept_on_host_ = std::ranges::any_of(mine, [](const auto& own) { return own.second.first.device().is_cpu(); });
  std::string own;
  for (const auto& [parameter, placed] : placed_) {
    const auto found = mine.find(parameter);
    const Known known = found == mine.end()    ? Known::kAbsent
                        : found->second.second ? Known::kWithGradient
                                               : Known::kWithoutGradient;
    own.push_back(static_cast<char>(known));
  }
  const std::string all =
      any_is_sent() ? comm::all_gather_small(*communicator_, own, {"parameters with gradients"}) : own;
  std::map<int, Known> known;
  std::size_t position = 0;
  for (const auto& [parameter, placed] : placed_) {
    char most = 0;
    for (std::size_t i = position; i < all.size(); i += own.size()) most = std::max(most, all[i]);
    known[parameter] = static_cast<Known>(most);
    ++position;
  }
  return known;
}

std::vector<int> WholeParameters::sent(const std::map<int, Known>& known, Known least) const {
  std::vector<int> parameters;
  for (const auto& [parameter, placed] : placed_) {
    if (placed.is_sent && known.at(parameter) >= least) parameters.push_back(parameter);
  }
  return parameters;
}

std::vector<std::vector<int>> WholeParameters::chunks(const std::vector<int>& parameters) const {
  std::vector<std::vector<int>> chunks;
  std::int64_t numel = 0;
  for (const int parameter : parameters) {
    const std::int64_t added = shape(parameter).numel();
    if (chunks.empty() || numel + added > kChunkNumel) {
      chunks.emplace_back();
      numel = 0;
    }
    chunks.back().push_back(parameter);
    numel += added;
  }
  return chunks;
}

void WholeParameters::exchange_chunk(const std::vector<int>& chunk, const PartOf& part_of, const OwnValues& own,
                                     const Receive& receive) {
  for (int rank = 0; rank < communicator_->size(); ++rank) {
    std::vector<Piece> pieces;
    std::int64_t numel = 0;
    for (const int parameter : chunk) {
      const auto part = part_of(placed_.at(parameter), rank);
      if (!part) continue;
      pieces.emplace_back(parameter, *part);
      numel += part->numel;
    }
    if (pieces.empty()) continue;
    at::Tensor buffer = at::empty(numel, at::TensorOptions(at::kFloat).device(device_));
    const auto each_piece = [&](const auto& use) {
      std::int64_t begin = 0;
      for (const auto& [parameter, part] : pieces) {
        use(parameter, part, buffer.narrow(0, begin, part.numel));
        begin += part.numel;
      }
    };
    if (rank == communicator_->rank()) {
      each_piece([&](int parameter, const ParameterPart&, at::Tensor to) { to.copy_(own(parameter).reshape(-1)); });
    }
    broadcast(buffer, rank);
    if (kept_on_host_) paging::wait_for_stream(device_, *communicator_, "parameters that an optimizer sees whole");
    each_piece(receive);
  }
}

}  // namespace zeropage::session
