#include "zeropage/engine/replica_check.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>
#include <map>
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

bool all_alike(const Digests& all, std::size_t count, std::size_t item) {
  for (std::size_t at = item; at < all.size(); at += count) {
    if (all[at] != all[item]) return false;
  }
  return true;
}

/// "rank 2 from rank 0, 1, 3"; the largest group counts as right.
std::string who(const Digests& all, std::size_t count, std::size_t item) {
  std::map<std::uint64_t, std::vector<std::size_t>> ranks;
  for (std::size_t at = item; at < all.size(); at += count) ranks[all[at]].push_back(at / count);
  std::vector<std::vector<std::size_t>> groups;
  for (auto& [digest, members] : ranks) groups.push_back(std::move(members));
  std::sort(groups.begin(), groups.end(),
            [](const auto& a, const auto& b) { return a.size() != b.size() ? a.size() > b.size() : a < b; });
  std::vector<std::size_t> others;
  for (std::size_t i = 1; i < groups.size(); ++i) others.insert(others.end(), groups[i].begin(), groups[i].end());
  std::sort(others.begin(), others.end());
  return fmt::format("rank {} from rank {}", fmt::join(others, ", "), fmt::join(groups[0], ", "));
}

}  // namespace

void compare_replicas(const ModelState& state, comm::Communicator& communicator, std::int64_t step) {
  if (communicator.size() == 1) return;
  std::vector<int> pages;
  Digests mine;
  for (const auto& page : state.layout()->pages()) {
    if (state.whole_page(page.index) == nullptr || page.used_numel == 0) continue;
    pages.push_back(page.index);
    mine.push_back(digest_of(parameter_digests(state, page)));
  }
  if (pages.empty()) return;
  const Digests all = gather(communicator, mine);
  std::vector<std::size_t> differ;
  for (std::size_t i = 0; i < pages.size(); ++i) {
    if (!all_alike(all, pages.size(), i)) differ.push_back(i);
  }
  if (differ.empty()) return;

  const auto& page = state.layout()->pages()[pages[differ[0]]];
  const Digests parameters = gather(communicator, parameter_digests(state, page));
  const std::size_t count = page.placements.size();
  std::vector<std::string> names;
  std::size_t found = 0;
  for (std::size_t i = 0; i < count; ++i) {
    if (all_alike(parameters, count, i) || ++found > kNamesShown) continue;
    names.push_back(json::quote(state.layout()->parameters()[page.placements[i].parameter].name));
  }
  const std::string more = found > names.size() ? fmt::format(" and {} more", found - names.size()) : "";
  const std::string pages_more = differ.size() > 1 ? fmt::format(", and so do {} more pages", differ.size() - 1) : "";
  throw PeerError(
      fmt::format("after step {} ranks do not have the same parameters: page {} differs, {}, in {}{}{}. Either memory "
                  "of a rank lost a bit, or "
                  "code changed a parameter only on some ranks. Resume from an earlier checkpoint; when the same rank "
                  "differs again, "
                  "take its machine out of the job (zeropage.replica_check_steps)",
                  step, page.index, who(all, pages.size(), differ[0]), fmt::join(names, ", "), more, pages_more));
}

}  // namespace zeropage::engine
