#include "zeropage/comm/hosts/hosts_reduction.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "zeropage/comm/hosts/bytes.h"
#include "zeropage/comm/reduce_kernels.h"

namespace zeropage::comm {
namespace {

class OrderedReduction {
 public:
  OrderedReduction(const HostGrid& grid, int host, ReductionCall call)
      : grid_(grid),
        host_(host),
        call_(std::move(call)),
        routes_(choose_routes(grid, call_.in_dtype)),
        term_bytes_(call_.shard_numel * element_bytes(call_.in_dtype)),
        sum_dtype_(sum_dtype_of(call_.in_dtype)),
        sum_bytes_(call_.shard_numel * element_bytes(sum_dtype_)) {}

  int hops() const {
    int hops = 0;
    while (!passing(hops).empty()) ++hops;
    return hops;
  }

  bool sums_return() const {
    for (int owner = 0; owner + 1 < grid_.hosts; ++owner) {
      if (returns(owner)) return true;
    }
    return false;
  }

  void exchange_terms(Communicator& inside, std::vector<WorkPtr>& works) {
    const std::int64_t block_bytes = grid_.local_size * term_bytes_;
    terms_.allocate(grid_.hosts * block_bytes);
    for (int owner = 0; owner < grid_.hosts; ++owner) {
      works.push_back(inside.all_to_all(call_.whole + owner * block_bytes, block(owner), term_bytes_, call_.tag));
    }
  }

  /// Hop 0 exists even if no sum uses it, because it carries the terms.
  void start_hop(int hop, Communicator& between, std::vector<WorkPtr>& works) {
    const auto part_bytes = [this, hop](int from, int to) { return hop_bytes(hop, from, to); };
    std::int64_t sent_bytes = 0;
    std::int64_t received_bytes = 0;
    for (int other = 0; other < grid_.hosts; ++other) {
      sent_bytes += part_bytes(host_, other);
      received_bytes += part_bytes(other, host_);
    }
    std::byte* next = sent_.allocate(sent_bytes);
    for (int to = 0; to < grid_.hosts; ++to) {
      if (hop == 0 && sends_terms(route(to), to, host_)) {
        std::memcpy(next, block(to), static_cast<std::size_t>(grid_.local_size * term_bytes_));
        next += grid_.local_size * term_bytes_;
      }
      if (to != host_ + 1 || hop != host_) continue;
      for (const int owner : passing(hop)) {
        add_own_terms(owner, next);
        next += sum_bytes_;
      }
    }
    // The data of an earlier hop has been used, unless it is for this rank itself.
    std::byte* received = (hop == 0             ? received_terms_
                           : received_bytes > 0 ? received_sums_
                                                : nothing_)
                              .allocate(received_bytes);
    works.push_back(between.all_to_all(sent_.data(), received, part_bytes, call_.tag));
  }

  void end_hop(int hop) {
    sent_.free();
    if (hop + 1 != host_ || passing(hop).empty()) return;
    sums_ = hop == 0 ? received_terms_.data() + terms_of_host(0) : received_sums_.data();
  }

  void start_return(Communicator& between, std::vector<WorkPtr>& works) {
    const int last = grid_.hosts - 1;
    const auto part_bytes = [this, last](int from, int to) { return from == last && returns(to) ? sum_bytes_ : 0; };
    if (host_ == last) {
      std::int64_t bytes = 0;
      for (int owner = 0; owner < last; ++owner) bytes += part_bytes(last, owner);
      std::byte* next = sent_.allocate(bytes);
      for (int owner = 0; owner < last; ++owner) {
        if (!returns(owner)) continue;
        add_own_terms(owner, next);
        next += sum_bytes_;
      }
    }
    returned_.allocate(part_bytes(last, host_));
    works.push_back(between.all_to_all(sent_.data(), returned_.data(), part_bytes, call_.tag));
  }

  /// Adds the owner's own terms to the received sum.
  void finish() {
    std::vector<const std::byte*> terms;
    const std::byte* start = returns(host_) ? returned_.data() : sum_from_before(host_);
    const std::byte* next = received_terms_.data();
    for (int from = 0; !returns(host_) && from < grid_.hosts; ++from) {
      const bool sent = sends_terms(route(host_), host_, from);
      for (int local = 0; (sent || from == host_) && local < grid_.local_size; ++local) {
        terms.push_back((sent ? next : block(host_)) + local * term_bytes_);
      }
      next += hop_bytes(0, from, host_);
    }
    reduce_ranks(terms, call_.out, call_.shard_numel, call_.in_dtype, call_.out_dtype, call_.accumulate,
                 call_.on_reduced, start);
  }

 private:
  TermRoute route(int owner) const { return routes_[static_cast<std::size_t>(owner)]; }
  std::byte* block(int owner) const { return terms_.data() + owner * grid_.local_size * term_bytes_; }
  bool returns(int owner) const { return route(owner) == TermRoute::kSums && owner + 1 < grid_.hosts; }

  /// The owners of the sums that go from host `hop` to the next one.
  std::vector<int> passing(int hop) const {
    std::vector<int> owners;
    for (int owner = 0; owner < grid_.hosts; ++owner) {
      if (passes_on(route(owner), grid_, owner, hop)) owners.push_back(owner);
    }
    return owners;
  }

  std::int64_t terms_of_host(int from) const {
    return sends_terms(route(host_), host_, from) ? grid_.local_size * term_bytes_ : 0;
  }

  std::int64_t hop_bytes(int hop, int from, int to) const {
    const bool terms = hop == 0 && sends_terms(route(to), to, from);
    const bool sums = from == hop && to == hop + 1;
    return (terms ? grid_.local_size * term_bytes_ : 0) +
           (sums ? static_cast<std::int64_t>(passing(hop).size()) * sum_bytes_ : 0);
  }

  /// The sum of `owner`'s shard over the earlier hosts; null if none was received.
  const std::byte* sum_from_before(int owner) const {
    if (sums_ == nullptr) return nullptr;
    std::int64_t begin = 0;
    for (const int other : passing(host_ - 1)) {
      if (other == owner) return sums_ + begin;
      begin += sum_bytes_;
    }
    return nullptr;
  }

  void add_own_terms(int owner, std::byte* sum) const {
    reduce_consecutive(block(owner), grid_.local_size, sum, call_.shard_numel, call_.in_dtype, sum_dtype_,
                       /*accumulate=*/false, {}, sum_from_before(owner));
  }

  const HostGrid grid_;
  const int host_;
  const ReductionCall call_;
  const std::vector<TermRoute> routes_;  // by the host of the owner
  const std::int64_t term_bytes_;        // of one rank
  const DType sum_dtype_;
  const std::int64_t sum_bytes_;
  Bytes terms_;  // [hosts, local_size, shard_numel]
  Bytes sent_;
  Bytes received_terms_;  // and the sums of hop 0
  Bytes received_sums_;
  Bytes nothing_;
  Bytes returned_;
  const std::byte* sums_ = nullptr;  // from the previous host, for the owners of passing(host_ - 1)
};

/// Appends the stage that puts the sums of this host's terms into `sums`: those of the shards of its column [hosts,
/// shard_numel], and behind them room for one more.
void add_sums_of_host(HostsOperation& operation, const HostGrid& grid, const ReductionCall& call, DType sum_dtype,
                      const std::shared_ptr<Bytes>& sums) {
  const std::int64_t sum_bytes = call.shard_numel * element_bytes(sum_dtype);
  operation.stages.push_back(
      {Side::kInside,
       [=](Communicator& inside, std::vector<WorkPtr>& works) {
         sums->allocate((grid.hosts + 1) * sum_bytes);
         const std::int64_t block_bytes = grid.local_size * call.shard_numel * element_bytes(call.in_dtype);
         for (int owner = 0; owner < grid.hosts; ++owner) {
           works.push_back(inside.reduce_scatter(call.whole + owner * block_bytes, sums->data() + owner * sum_bytes,
                                                 call.shard_numel, call.in_dtype, sum_dtype, false, call.tag, {}));
         }
       },
       {}});
}

/// The room for one more.
std::byte* total_of(const Bytes& sums, const HostGrid& grid, const ReductionCall& call, DType sum_dtype) {
  return sums.data() + grid.hosts * call.shard_numel * element_bytes(sum_dtype);
}

void finish(const ReductionCall& call, const std::byte* total) {
  reduce_ranks({}, call.out, call.shard_numel, call.in_dtype, call.out_dtype, call.accumulate, call.on_reduced, total);
}

}  // namespace

void add_ordered_reduction(HostsOperation& operation, const HostGrid& grid, int host, const ReductionCall& call) {
  const auto reduction = std::make_shared<OrderedReduction>(grid, host, call);
  const auto add = [&](Side side, auto start, std::function<void()> finish = {}) {
    operation.stages.push_back({side, std::move(start), std::move(finish)});
  };
  add(Side::kInside, [=](Communicator& inside, auto& works) { reduction->exchange_terms(inside, works); });
  const int hops = std::max(1, reduction->hops());
  for (int hop = 0; hop < hops; ++hop) {
    add(
        Side::kBetween, [=](Communicator& between, auto& works) { reduction->start_hop(hop, between, works); },
        [=] { reduction->end_hop(hop); });
  }
  if (reduction->sums_return()) {
    add(Side::kBetween, [=](Communicator& between, auto& works) { reduction->start_return(between, works); });
  }
  const auto last = operation.stages.back().finish;
  operation.stages.back().finish = [=] {
    if (last) last();
    reduction->finish();
  };
}

void add_reduction_by_hosts(HostsOperation& operation, const HostGrid& grid, const ReductionCall& call) {
  const DType sum_dtype = sum_dtype_of(call.in_dtype);
  const auto sums = std::make_shared<Bytes>();
  add_sums_of_host(operation, grid, call, sum_dtype, sums);
  operation.stages.push_back(
      {Side::kBetween,
       [=](Communicator& between, std::vector<WorkPtr>& works) {
         works.push_back(between.reduce_scatter(sums->data(), total_of(*sums, grid, call, sum_dtype), call.shard_numel,
                                                sum_dtype, sum_dtype, false, call.tag, {}));
       },
       [=] { finish(call, total_of(*sums, grid, call, sum_dtype)); }});
}

void add_coded_reduction(HostsOperation& operation, const HostGrid& grid, const SumCodec& codec,
                         const ReductionCall& call) {
  const auto sums = std::make_shared<Bytes>();
  const auto sent = std::make_shared<Bytes>();
  const auto received = std::make_shared<Bytes>();
  add_sums_of_host(operation, grid, call, DType::kFloat32, sums);
  operation.stages.push_back({Side::kBetween,
                              [=](Communicator& between, std::vector<WorkPtr>& works) {
                                codec.encode(sums->data(), grid.hosts, sent->allocate(grid.hosts * codec.part_bytes));
                                works.push_back(between.all_to_all(sent->data(),
                                                                   received->allocate(grid.hosts * codec.part_bytes),
                                                                   codec.part_bytes, call.tag));
                              },
                              [=] {
                                codec.decode(received->data(), grid.hosts, sums->data());
                                std::byte* const total = total_of(*sums, grid, call, DType::kFloat32);
                                reduce_consecutive(sums->data(), grid.hosts, total, call.shard_numel, DType::kFloat32,
                                                   DType::kFloat32, false, {});
                                finish(call, total);
                              }});
}

}  // namespace zeropage::comm
