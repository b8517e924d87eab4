#include "zeropage/comm/hosts/replicated_reduction.h"

#include <memory>
#include <utility>
#include <vector>

#include "zeropage/comm/hosts/bytes.h"
#include "zeropage/comm/reduce_kernels.h"

namespace zeropage::comm {
namespace {

/// Sums over groups have more bits than terms in 16 bits.
DType sum_dtype_of(DType in_dtype) { return in_dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32; }

class ReplicatedReduction {
 public:
  ReplicatedReduction(const HostGrid& grid, int group, ReductionCall call)
      : grid_(grid),
        group_(group),
        call_(std::move(call)),
        sum_dtype_(sum_dtype_of(call_.in_dtype)),
        term_bytes_(call_.shard_numel * element_bytes(call_.in_dtype)),
        sum_bytes_(call_.shard_numel * element_bytes(sum_dtype_)) {}

  void exchange_terms(Communicator& inside, std::vector<WorkPtr>& works) {
    terms_.allocate(grid_.local_size * term_bytes_);
    works.push_back(inside.all_to_all(call_.whole, terms_.data(), term_bytes_, call_.tag));
  }

  /// Group `hop` sends its sum to the next one.
  void start_hop(int hop, Communicator& between, std::vector<WorkPtr>& works) {
    if (group_ == hop) add_own_terms();
    if (group_ == hop + 1) before_.allocate(sum_bytes_);
    const auto part_bytes = [hop, bytes = sum_bytes_](int from, int to) {
      return from == hop && to == hop + 1 ? bytes : 0;
    };
    works.push_back(between.all_to_all(sum_.data(), before_.data(), part_bytes, call_.tag));
  }

  void start_broadcast(Communicator& between, std::vector<WorkPtr>& works) {
    const int last = grid_.hosts - 1;
    if (group_ == last) add_own_terms();
    works.push_back(between.broadcast(sum_.data(), sum_bytes_, last, call_.tag));
  }

  void finish() {
    reduce_ranks({}, call_.out, call_.shard_numel, call_.in_dtype, call_.out_dtype, call_.accumulate, call_.on_reduced,
                 sum_.data());
  }

 private:
  void add_own_terms() {
    std::vector<const std::byte*> terms;
    for (int place = 0; place < grid_.local_size; ++place) terms.push_back(terms_.data() + place * term_bytes_);
    reduce_ranks(terms, sum_.allocate(sum_bytes_), call_.shard_numel, call_.in_dtype, sum_dtype_, /*accumulate=*/false,
                 {}, before_.data());
    terms_.free();
    before_.free();
  }

  const HostGrid grid_;
  const int group_;
  const ReductionCall call_;
  const DType sum_dtype_;
  const std::int64_t term_bytes_;  // of one rank
  const std::int64_t sum_bytes_;
  Bytes terms_;   // [local_size, shard_numel]
  Bytes before_;  // the sum over the earlier groups; none in the first one
  Bytes sum_;     // with this group's terms; then with those of all groups
};

}  // namespace

void add_replicated_reduction(HostsOperation& operation, const HostGrid& grid, int group, const ReductionCall& call) {
  const auto reduction = std::make_shared<ReplicatedReduction>(grid, group, call);
  operation.stages.push_back(
      {Side::kInside, [=](Communicator& inside, auto& works) { reduction->exchange_terms(inside, works); }, {}});
  for (int hop = 0; hop + 1 < grid.hosts; ++hop) {
    operation.stages.push_back(
        {Side::kBetween, [=](Communicator& between, auto& works) { reduction->start_hop(hop, between, works); }, {}});
  }
  operation.stages.push_back({Side::kBetween,
                              [=](Communicator& between, auto& works) { reduction->start_broadcast(between, works); },
                              [=] { reduction->finish(); }});
}

void add_replicated_reduction_by_groups(HostsOperation& operation, const ReductionCall& call) {
  const auto sum = std::make_shared<Bytes>();
  const DType dtype = sum_dtype_of(call.in_dtype);
  operation.stages.push_back({Side::kInside,
                              [=](Communicator& inside, std::vector<WorkPtr>& works) {
                                sum->allocate(call.shard_numel * element_bytes(dtype));
                                works.push_back(inside.reduce_scatter(call.whole, sum->data(), call.shard_numel,
                                                                      call.in_dtype, dtype, false, call.tag, {}));
                              },
                              {}});
  operation.stages.push_back({Side::kBetween,
                              [=](Communicator& between, std::vector<WorkPtr>& works) {
                                works.push_back(between.all_reduce(sum->data(), call.shard_numel, dtype, call.tag, {}));
                              },
                              [=] {
                                reduce_ranks({}, call.out, call.shard_numel, call.in_dtype, call.out_dtype,
                                             call.accumulate, call.on_reduced, sum->data());
                              }});
}

}  // namespace zeropage::comm
