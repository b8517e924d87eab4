#include "zeropage/comm/hosts/replicated_reduction.h"

#include <memory>
#include <utility>
#include <vector>

#include "zeropage/comm/reduce_kernels.h"

namespace zeropage::comm {
namespace {

class ReplicatedReduction {
 public:
  ReplicatedReduction(const HostGrid& grid, int group, ReductionCall call, SumMemoryPtr memory)
      : grid_(grid),
        group_(group),
        call_(std::move(call)),
        memory_(std::move(memory)),
        sum_dtype_(sum_dtype_of(call_.in_dtype)),
        term_bytes_(call_.shard_numel * element_bytes(call_.in_dtype)),
        sum_bytes_(call_.shard_numel * element_bytes(sum_dtype_)) {}

  void exchange_terms(Communicator& inside, std::vector<WorkPtr>& works) {
    terms_ = memory_->allocate(grid_.local_size * term_bytes_);
    sum_ = memory_->allocate(sum_bytes_);
    works.push_back(inside.all_to_all(call_.whole, terms_.get(), term_bytes_, call_.tag));
  }

  /// Group `hop` sends its sum to the next one.
  void start_hop(int hop, Communicator& between, std::vector<WorkPtr>& works) {
    if (group_ == hop) add_own_terms();
    if (group_ == hop + 1) before_ = memory_->allocate(sum_bytes_);
    const auto part_bytes = [hop, bytes = sum_bytes_](int from, int to) {
      return from == hop && to == hop + 1 ? bytes : 0;
    };
    // Who receives nothing names memory of the same kind: it decides how the collective is carried.
    std::byte* const received = group_ == hop + 1 ? before_.get() : sum_.get();
    works.push_back(between.all_to_all(sum_.get(), received, part_bytes, call_.tag));
  }

  void start_broadcast(Communicator& between, std::vector<WorkPtr>& works) {
    const int last = grid_.hosts - 1;
    if (group_ == last) add_own_terms();
    works.push_back(between.broadcast(sum_.get(), sum_bytes_, last, call_.tag));
  }

  void finish() {
    memory_->add(nullptr, 0, call_.out, call_.shard_numel, call_.in_dtype, call_.out_dtype, call_.accumulate,
                 call_.on_reduced, sum_.get());
  }

 private:
  void add_own_terms() {
    memory_->add(terms_.get(), grid_.local_size, sum_.get(), call_.shard_numel, call_.in_dtype, sum_dtype_,
                 /*accumulate=*/false, {}, before_.get());
    terms_.reset();
    before_.reset();
  }

  const HostGrid grid_;
  const int group_;
  const ReductionCall call_;
  const SumMemoryPtr memory_;
  const DType sum_dtype_;
  const std::int64_t term_bytes_;  // of one rank
  const std::int64_t sum_bytes_;
  std::shared_ptr<std::byte> terms_;   // [local_size, shard_numel]
  std::shared_ptr<std::byte> before_;  // the sum over the earlier groups; none in the first one
  std::shared_ptr<std::byte> sum_;     // with this group's terms; then with those of all groups
};

}  // namespace

void add_replicated_reduction(HostsOperation& operation, const HostGrid& grid, int group, const ReductionCall& call,
                              const SumMemoryPtr& memory) {
  const auto reduction = std::make_shared<ReplicatedReduction>(grid, group, call, memory);
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

void add_replicated_reduction_by_groups(HostsOperation& operation, const ReductionCall& call,
                                        const SumMemoryPtr& memory) {
  const auto sum = std::make_shared<std::shared_ptr<std::byte>>();
  const DType dtype = sum_dtype_of(call.in_dtype);
  operation.stages.push_back({Side::kInside,
                              [=](Communicator& inside, std::vector<WorkPtr>& works) {
                                *sum = memory->allocate(call.shard_numel * element_bytes(dtype));
                                works.push_back(inside.reduce_scatter(call.whole, sum->get(), call.shard_numel,
                                                                      call.in_dtype, dtype, false, call.tag, {}));
                              },
                              {}});
  operation.stages.push_back({Side::kBetween,
                              [=](Communicator& between, std::vector<WorkPtr>& works) {
                                works.push_back(between.all_reduce(sum->get(), call.shard_numel, dtype, call.tag, {}));
                              },
                              [=] {
                                memory->add(nullptr, 0, call.out, call.shard_numel, call.in_dtype, call.out_dtype,
                                            call.accumulate, call.on_reduced, sum->get());
                              }});
}

}  // namespace zeropage::comm
