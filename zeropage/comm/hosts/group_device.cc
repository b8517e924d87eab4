#include "zeropage/comm/hosts/group_device.h"

#include <algorithm>

#include "zeropage/comm/reduce_kernels.h"

namespace zeropage::comm {
namespace {

class HostSums final : public SumMemory {
 public:
  std::shared_ptr<std::byte> allocate(std::int64_t bytes) const override {
    auto* const memory = new std::byte[static_cast<std::size_t>(std::max<std::int64_t>(bytes, 1))];
    return {memory, std::default_delete<std::byte[]>()};
  }

  void add(const std::byte* terms, std::int64_t count, std::byte* out, std::int64_t numel, DType in_dtype,
           DType out_dtype, bool accumulate, const OnReduced& on_reduced, const std::byte* start) const override {
    reduce_consecutive(terms, count, out, numel, in_dtype, out_dtype, accumulate, on_reduced, start);
  }
};

}  // namespace

std::shared_ptr<const SumMemory> host_sums() {
  static const auto sums = std::make_shared<const HostSums>();
  return sums;
}

}  // namespace zeropage::comm
