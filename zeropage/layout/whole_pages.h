/// \file
/// Pages for optimizers that look at whole parameters. A parameter that lies on the border of two shards travels within
/// each update (python/zeropage/whole_parameters.py), and a page has as many borders as ranks less one: larger pages
/// have fewer.
#pragma once

#include <cstdint>

namespace zeropage::layout {

/// Elements of a page of which about three quarters lie within shards: 4 `largest_numel` (of a parameter) for each
/// rank; at most a quarter of `total_numel`, and where frames of pages are made (stages 2 and 3) 5e7. 0: the default
/// page is as large.
std::int64_t page_numel_for_whole_parameters(std::int64_t total_numel, std::int64_t largest_numel, int world_size,
                                             int stage);

}  // namespace zeropage::layout
