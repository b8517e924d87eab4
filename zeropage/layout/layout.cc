/// \file
/// How parameters are put into pages:
///   1. The key of a page is (dtype, element bytes, group, trainable, persistent, whole). The parameters of a key, in
///      the order given, are divided into pages.
///   2. A parameter is placed after the previous one, at the next multiple of the parameter alignment. If it would end
///      beyond page_numel, it is the first of the next page. A parameter larger than page_numel has a page of its own.
///      Parameters that are needed whole: see whole_pages.h.
///   3. Each page is cut into world_size shards of equal, aligned size. A page has at least one alignment unit per
///      shard, so pages of empty parameters need no special case.
/// Pages are numbered in the order of their first parameter.
#include "zeropage/layout/layout.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <map>
#include <optional>
#include <tuple>
#include <utility>

#include "zeropage/base/checked.h"
#include "zeropage/base/error.h"
#include "zeropage/layout/whole_pages.h"

namespace zeropage::layout {
namespace {

using PageKey = std::tuple<DType, std::int64_t, int, bool, bool, bool>;

void check_options(const LayoutOptions& options) {
  const auto at_least_one = [](std::int64_t value, const char* name) {
    if (value < 1) throw ConfigError(fmt::format("layout: {} must be at least 1, got {}", name, value));
  };
  at_least_one(options.world_size, "world_size");
  at_least_one(options.page_numel, "page_numel");
  at_least_one(options.parameter_alignment_numel, "parameter_alignment_numel");
  at_least_one(options.shard_alignment_numel, "shard_alignment_numel");
}

void check_parameter(const ParameterSpec& spec) {
  if (spec.numel < 0) {
    throw ConfigError(fmt::format("layout: parameter '{}' has {} elements; expected 0 or more", spec.name, spec.numel));
  }
  if (spec.group < -1) {
    throw ConfigError(fmt::format("layout: parameter '{}' is in optimizer group {}; expected -1 (none) or more",
                                  spec.name, spec.group));
  }
  const bool any_size = spec.dtype == DType::kOther;
  if (any_size ? spec.element_bytes < 1 : spec.element_bytes != element_bytes(spec.dtype)) {
    throw ConfigError(fmt::format("layout: parameter '{}' of type {} has elements of {} bytes; expected {}", spec.name,
                                  dtype_name(spec.dtype), spec.element_bytes,
                                  any_size ? std::string("1 or more") : std::to_string(element_bytes(spec.dtype))));
  }
}

Page open_page(int index, const ParameterSpec& spec) {
  Page page;
  page.index = index;
  page.dtype = spec.dtype;
  page.element_bytes = spec.element_bytes;
  page.group = spec.group;
  page.trainable = spec.trainable;
  page.persistent = spec.persistent;
  return page;
}

/// How many of `parameters`, from `first` on, are on one page. `needs_whole`: their optimizer needs them whole.
std::size_t page_length(const std::vector<ParameterSpec>& parameters, const std::vector<int>& indices,
                        std::size_t first, const LayoutOptions& options, bool needs_whole) {
  std::vector<std::int64_t> numels;
  std::int64_t end = 0;
  for (std::size_t i = first; i < indices.size(); ++i) {
    const ParameterSpec& spec = parameters[indices[i]];
    end = checked_add(checked_round_up(end, options.parameter_alignment_numel, spec.name), spec.numel, spec.name);
    if (i > first && end > options.page_numel) break;
    numels.push_back(spec.numel);
  }
  return needs_whole ? best_page_length(numels, options) : numels.size();
}

/// Places one parameter after the other.
void place_in_order(Page& page, const std::vector<ParameterSpec>& parameters, const std::vector<int>& indices,
                    const LayoutOptions& options) {
  for (const int index : indices) {
    const ParameterSpec& spec = parameters[index];
    const std::int64_t offset = checked_round_up(page.used_numel, options.parameter_alignment_numel, spec.name);
    page.placements.push_back({index, offset, spec.numel});
    page.used_numel = checked_add(offset, spec.numel, spec.name);
  }
  const std::string what = fmt::format("padded size of page {}", page.index);
  const std::int64_t share_numel = std::max<std::int64_t>(1, ceil_div(page.used_numel, options.world_size));
  page.shard_numel = checked_round_up(share_numel, options.shard_alignment_numel, what);
}

/// Places each parameter within one shard, if possible.
void place_in_shards(Page& page, const std::vector<ParameterSpec>& parameters, const std::vector<int>& indices,
                     const LayoutOptions& options) {
  std::vector<std::int64_t> numels;
  for (const int index : indices) numels.push_back(parameters[index].numel);
  const std::optional<Shards> shards = pack_into_shards(numels, options);
  if (!shards) return place_in_order(page, parameters, indices, options);
  page.shard_numel = shards->shard_numel;
  for (std::size_t i = 0; i < indices.size(); ++i) {
    page.placements.push_back({indices[i], shards->offsets[i], numels[i]});
    page.used_numel = std::max(page.used_numel, shards->offsets[i] + numels[i]);
  }
  std::ranges::sort(page.placements, {},
                    [](const Placement& placement) { return std::pair(placement.offset, placement.numel); });
}

}  // namespace

Layout::Layout(std::vector<ParameterSpec> parameters, const LayoutOptions& options) : options_(options) {
  check_options(options_);
  append(std::move(parameters));
}

void Layout::append(std::vector<ParameterSpec> parameters) {
  for (const ParameterSpec& spec : parameters) check_parameter(spec);
  std::map<PageKey, std::vector<int>> by_key;
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    const ParameterSpec& spec = parameters[i];
    by_key[{spec.dtype, spec.element_bytes, spec.group, spec.trainable, spec.persistent, spec.whole}].push_back(
        static_cast<int>(i));
  }
  std::vector<std::vector<int>> pages;
  for (const auto& [key, indices] : by_key) {
    for (std::size_t first = 0, length = 0; first < indices.size(); first += length) {
      length = page_length(parameters, indices, first, options_, std::get<5>(key));
      pages.emplace_back(indices.begin() + first, indices.begin() + first + length);
    }
  }
  std::ranges::sort(pages);  // by their first parameters
  const int known = static_cast<int>(parameters_.size());
  page_of_.resize(known + parameters.size());
  offset_of_.resize(page_of_.size());
  for (const auto& indices : pages) add_page(parameters, indices, known);
  std::ranges::move(parameters, std::back_inserter(parameters_));
  began_later_.resize(pages_.size());
}

void Layout::add_page(const std::vector<ParameterSpec>& parameters, const std::vector<int>& indices, int known) {
  const ParameterSpec& first = parameters[indices.front()];
  Page page = open_page(static_cast<int>(pages_.size()), first);
  (first.whole ? place_in_shards : place_in_order)(page, parameters, indices, options_);
  const std::string what = fmt::format("padded size of page {}", page.index);
  page.padded_numel = checked_mul(page.shard_numel, options_.world_size, what);
  checked_mul(page.padded_numel, page.element_bytes, what);
  for (Placement& placement : page.placements) {
    placement.parameter += known;
    page_of_[placement.parameter] = page.index;
    offset_of_[placement.parameter] = placement.offset;
  }
  pages_.push_back(std::move(page));
}

void Layout::begin_training(int page) {
  Page& spec = pages_.at(static_cast<std::size_t>(page));
  if (spec.trainable) return;
  if (spec.group < 0) throw UsageError(fmt::format("layout: page {} is in no group of the optimizer", page));
  spec.trainable = true;
  for (const Placement& placement : spec.placements) parameters_[placement.parameter].trainable = true;
  began_later_[page] = true;
}

std::vector<Segment> Layout::segments(int page, std::int64_t begin, std::int64_t end) const {
  if (page < 0 || page >= static_cast<int>(pages_.size())) {
    throw UsageError(fmt::format("layout: page {} was requested, but there are {} pages", page, pages_.size()));
  }
  if (begin < 0 || begin > end || end > pages_[page].padded_numel) {
    throw UsageError(fmt::format("layout: elements [{}, {}) of page {} were requested, which has {}", begin, end, page,
                                 pages_[page].padded_numel));
  }
  const std::vector<Placement>& placements = pages_[page].placements;
  const auto ends_before = [](const Placement& placement, std::int64_t position) {
    return placement.offset + placement.numel <= position;
  };
  std::vector<Segment> found;
  auto placement = std::lower_bound(placements.begin(), placements.end(), begin, ends_before);
  for (; placement != placements.end() && placement->offset < end; ++placement) {
    const std::int64_t first = std::max(begin, placement->offset);
    const std::int64_t last = std::min(end, placement->offset + placement->numel);
    if (first < last) found.push_back({placement->parameter, first, first - placement->offset, last - first});
  }
  return found;
}

std::vector<Segment> Layout::shard_segments(int page, int rank) const {
  if (rank < 0 || rank >= options_.world_size) {
    throw UsageError(fmt::format("layout: rank {} was requested, but there are {} ranks", rank, options_.world_size));
  }
  const std::int64_t shard_numel = page >= 0 && page < static_cast<int>(pages_.size()) ? pages_[page].shard_numel : 0;
  return segments(page, rank * shard_numel, (rank + 1) * shard_numel);
}

std::string Layout::describe() const {
  std::string text;
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    const ParameterSpec& spec = parameters_[i];
    fmt::format_to(std::back_inserter(text), "{} numel={} {}x{}B group={} {} {} page={} offset={}\n", spec.name,
                   spec.numel, dtype_name(spec.dtype), spec.element_bytes, spec.group,
                   spec.trainable ? "trainable" : "frozen", spec.persistent ? "persistent" : "paged", page_of_[i],
                   offset_of_[i]);
  }
  return text;
}

std::int64_t default_page_numel(std::int64_t total_numel, bool networked) {
  constexpr std::int64_t kSmallest = 1 << 16;
  constexpr std::int64_t kWorthAMessage = 1 << 20;
  constexpr std::int64_t kLargest = 1 << 23;
  const std::int64_t worthwhile = networked ? std::min(total_numel / 8, kWorthAMessage) : 0;
  return std::clamp(std::max(total_numel / 32, worthwhile), kSmallest, kLargest);
}

}  // namespace zeropage::layout
