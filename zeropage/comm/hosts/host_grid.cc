#include "zeropage/comm/hosts/host_grid.h"

#include "zeropage/comm/reduce_kernels.h"

namespace zeropage::comm {

int column_count(const World& world) {
  const int columns = world.local_size;
  const bool fits = columns > 0 && world.size % columns == 0 && world.rank % columns == world.local_rank;
  return fits ? columns : 0;
}

std::int64_t bytes_between_hosts(TermRoute route, const HostGrid& grid, int owner_host, DType dtype) {
  const std::int64_t terms = grid.local_size * element_bytes(dtype);
  const std::int64_t sum = element_bytes(sum_dtype_of(dtype));
  const std::int64_t after = grid.hosts - 1 - owner_host;
  switch (route) {
    case TermRoute::kTerms: return (grid.hosts - 1) * terms;
    case TermRoute::kSumsThenTerms: return owner_host * sum + after * terms;
    case TermRoute::kSums: return (grid.hosts - 1) * sum + (after > 0 ? sum : 0);
  }
  return 0;
}

std::vector<TermRoute> choose_routes(const HostGrid& grid, DType dtype) {
  std::vector<TermRoute> routes;
  for (int owner = 0; owner < grid.hosts; ++owner) {
    TermRoute best = TermRoute::kTerms;
    for (const TermRoute route : {TermRoute::kSumsThenTerms, TermRoute::kSums}) {
      const bool fewer = bytes_between_hosts(route, grid, owner, dtype) < bytes_between_hosts(best, grid, owner, dtype);
      if (fewer) best = route;
    }
    routes.push_back(best);
  }
  return routes;
}

bool passes_on(TermRoute route, const HostGrid& grid, int owner_host, int from) {
  if (route == TermRoute::kSumsThenTerms) return from < owner_host;
  return route == TermRoute::kSums && from + 1 < grid.hosts;
}

bool sends_terms(TermRoute route, int owner_host, int from) {
  if (route == TermRoute::kSumsThenTerms) return from > owner_host;
  return route == TermRoute::kTerms && from != owner_host;
}

}  // namespace zeropage::comm
