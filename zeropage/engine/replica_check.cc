#include "zeropage/engine/replica_check.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "zeropage/base/digest.h"
#include "zeropage/base/error.h"
#include "zeropage/base/json_text.h"
#include "zeropage/paging/device_wait.h"

namespace zeropage::engine {
namespace {

using Digests = std::vector<std::uint64_t>;

constexpr std::size_t kNamesShown = 5;

/// The digests of a page's parameters, without the padding between them.
Digests parameter_digests(const ModelState& state, const layout::Page& page) {
  const auto* bytes = state.whole_page(page.index);
  const auto device = state.owned(page.index).device;
  at::Tensor host;
  if (!device.is_cpu()) {
    auto* start = const_cast<std::byte*>(bytes);
    host = paging::to_host(memory::flat_view(start, page.used_numel * page.element_bytes, at::kByte, device),
                           state.communicator(), "parameters that ranks compare");
    bytes = static_cast<const std::byte*>(host.const_data_ptr());
  }
  Digests digests;
  for (const auto& place : page.placements) {
    digests.push_back(hash64(bytes + place.offset * page.element_bytes, place.numel * page.element_bytes));
  }
  return digests;
}

std::uint64_t digest_of(const Digests& digests) {
  return hash64(reinterpret_cast<const std::byte*>(digests.data()),
                static_cast<std::int64_t>(digests.size() * sizeof(digests[0])));
}

/// Every rank's digests, in the order of ranks.
Digests gather(comm::Communicator& communicator, const Digests& mine) {
  const std::string all =
      comm::all_gather_small(communicator, {reinterpret_cast<const char*>(mine.data()), mine.size() * sizeof(mine[0])},
                             comm::Tag{"digests of parameters", 0});
  Digests digests(all.size() / sizeof(std::uint64_t));
  std::memcpy(digests.data(), all.data(), all.size());
  return digests;
}

/// A page, and the ranks with copies of what is digested of it: those with equal rank modulo `stride`.
struct Compared {
  int page = 0;
  std::size_t stride = 1;
};

/// The first rank whose digest differs from that of the first rank with a copy; the number of ranks: none does.
std::size_t first_different(const Digests& all, std::size_t count, std::size_t item, std::size_t stride) {
  const std::size_t ranks = all.size() / count;
  for (std::size_t rank = 0; rank < ranks; ++rank) {
    if (all[rank * count + item] != all[rank % stride * count + item]) return rank;
  }
  return ranks;
}

bool all_alike(const Digests& all, std::size_t count, std::size_t item, std::size_t stride = 1) {
  return first_different(all, count, item, stride) == all.size() / count;
}

/// "rank 2 from rank 0, 1, 3"; the largest group counts as right.
std::string who(const Digests& all, std::size_t count, std::size_t item, std::size_t stride) {
  std::map<std::uint64_t, std::vector<std::size_t>> ranks;
  const std::size_t place = first_different(all, count, item, stride) % stride;
  for (std::size_t rank = place; rank < all.size() / count; rank += stride) {
    ranks[all[rank * count + item]].push_back(rank);
  }
  std::vector<std::vector<std::size_t>> groups;
  for (auto& [digest, members] : ranks) groups.push_back(std::move(members));
  std::sort(groups.begin(), groups.end(),
            [](const auto& a, const auto& b) { return a.size() != b.size() ? a.size() > b.size() : a < b; });
  std::vector<std::size_t> others;
  for (std::size_t i = 1; i < groups.size(); ++i) others.insert(others.end(), groups[i].begin(), groups[i].end());
  std::sort(others.begin(), others.end());
  return fmt::format("rank {} from rank {}", fmt::join(others, ", "), fmt::join(groups[0], ", "));
}

/// The digest of this rank's shard of a page in host memory; nullopt if it is not there.
std::optional<std::uint64_t> shard_digest(const ModelState& state, const layout::Page& page) {
  const auto& own = state.owned(page.index);
  if (own.parameter == nullptr || !own.device.is_cpu()) return std::nullopt;
  const std::int64_t numel = std::clamp<std::int64_t>(page.used_numel - own.begin, 0, own.numel);
  return hash64(own.parameter, numel * page.element_bytes);
}

/// The names of a page's parameters for which `differs`, the first ones.
std::string names_of(const ModelState& state, const layout::Page& page,
                     const std::function<bool(std::size_t)>& differs) {
  std::vector<std::string> names;
  std::size_t found = 0;
  for (std::size_t i = 0; i < page.placements.size(); ++i) {
    if (!differs(i) || ++found > kNamesShown) continue;
    names.push_back(json::quote(state.layout()->parameters()[page.placements[i].parameter].name));
  }
  const std::string more = found > names.size() ? fmt::format(" and {} more", found - names.size()) : "";
  return fmt::format("{}{}", fmt::join(names, ", "), more);
}

}  // namespace

void compare_replicas(const ModelState& state, comm::Communicator& communicator, std::int64_t step) {
  comm::Communicator& job = communicator.job();
  if (job.size() == 1) return;
  const auto group_size = static_cast<std::size_t>(communicator.size());
  std::vector<Compared> compared;
  Digests mine;
  for (const auto& page : state.layout()->pages()) {
    if (page.used_numel == 0) continue;
    if (state.whole_page(page.index) != nullptr) {
      compared.push_back({page.index});
      mine.push_back(digest_of(parameter_digests(state, page)));
    } else if (const auto digest = job.size() > communicator.size() ? shard_digest(state, page) : std::nullopt) {
      compared.push_back({page.index, group_size});
      mine.push_back(*digest);
    }
  }
  if (compared.empty()) return;
  const Digests all = gather(job, mine);
  std::vector<std::size_t> differ;
  for (std::size_t i = 0; i < compared.size(); ++i) {
    if (!all_alike(all, compared.size(), i, compared[i].stride)) differ.push_back(i);
  }
  if (differ.empty()) return;

  const Compared& first = compared[differ[0]];
  const auto& page = state.layout()->pages()[first.page];
  std::string names;
  if (first.stride == 1) {
    const Digests parameters = gather(job, parameter_digests(state, page));
    names = names_of(state, page, [&](std::size_t i) { return !all_alike(parameters, page.placements.size(), i); });
  } else {
    names = "one of " + names_of(state, page, [](std::size_t) { return true; });
  }
  const std::string pages_more = differ.size() > 1 ? fmt::format(", and so do {} more pages", differ.size() - 1) : "";
  throw PeerError(
      fmt::format("after step {} ranks do not have the same parameters: page {} differs, {}, in {}{}. Either memory "
                  "of a rank lost a bit, or "
                  "code changed a parameter only on some ranks. Resume from an earlier checkpoint; when the same rank "
                  "differs again, "
                  "take its machine out of the job (zeropage.replica_check_steps)",
                  step, page.index, who(all, compared.size(), differ[0], first.stride), names, pages_more));
}

}  // namespace zeropage::engine
