#include "zeropage/comm/hosts/hosts_all_to_all.h"

#include <cstring>
#include <memory>
#include <utility>

#include "zeropage/comm/call.h"
#include "zeropage/comm/hosts/bytes.h"

namespace zeropage::comm {
namespace {

std::byte* append(std::byte* to, const std::byte* from, std::int64_t bytes) {
  if (bytes > 0) std::memcpy(to, from, static_cast<std::size_t>(bytes));
  return to + bytes;
}

class AllToAll {
 public:
  AllToAll(const HostGrid& grid, int rank, AllToAllCall call)
      : grid_(grid), rank_(rank), host_(grid.host_of(rank)), local_(grid.local_of(rank)), call_(std::move(call)) {}

  /// Parts in the order of column, host.
  void send_to_columns(Communicator& inside, std::vector<WorkPtr>& works) {
    std::vector<const std::byte*> parts;
    const std::byte* next = call_.sent;
    for (int r = 0; r < grid_.size(); ++r) {
      parts.push_back(next);
      next += call_.part_bytes(rank_, r);
    }
    to_columns_.allocate(next - call_.sent);
    std::byte* to = to_columns_.data();
    for (int column = 0; column < grid_.local_size; ++column) {
      for (int host = 0; host < grid_.hosts; ++host) {
        const int r = grid_.rank_at(host, column);
        to = append(to, parts[static_cast<std::size_t>(r)], call_.part_bytes(rank_, r));
      }
    }
    const auto part_bytes = [this](int from, int column) {
      std::int64_t bytes = 0;
      for (int host = 0; host < grid_.hosts; ++host) bytes += bytes_of(from, grid_.rank_at(host, column));
      return bytes;
    };
    of_column_.allocate(received_bytes(part_bytes, local_, grid_.local_size));
    works.push_back(inside.all_to_all(to_columns_.data(), of_column_.data(), part_bytes, call_.tag));
  }

  /// Parts in the order of host, local rank.
  void send_to_hosts(Communicator& between, std::vector<WorkPtr>& works) {
    to_columns_.free();
    const auto part_bytes = [this](int from, int to) {
      std::int64_t bytes = 0;
      for (int local = 0; local < grid_.local_size; ++local) {
        bytes += call_.part_bytes(grid_.rank_at(from, local), grid_.rank_at(to, local_));
      }
      return bytes;
    };
    to_hosts_.allocate(sent_bytes(part_bytes, host_, grid_.hosts));
    std::byte* to = to_hosts_.data();
    for (int host = 0; host < grid_.hosts; ++host) {
      const std::byte* next = of_column_.data();
      for (int local = 0; local < grid_.local_size; ++local) {
        for (int other = 0; other < grid_.hosts; ++other) {
          const std::int64_t bytes = bytes_of(local, grid_.rank_at(other, local_));
          if (other == host) to = append(to, next, bytes);
          next += bytes;
        }
      }
    }
    of_column_.free();
    works.push_back(between.all_to_all(to_hosts_.data(), call_.received, part_bytes, call_.tag));
  }

  void finish() { to_hosts_.free(); }

 private:
  /// Bytes from rank `local` of this host to rank `to` of the job.
  std::int64_t bytes_of(int local, int to) const { return call_.part_bytes(grid_.rank_at(host_, local), to); }

  const HostGrid grid_;
  const int rank_;
  const int host_;
  const int local_;
  const AllToAllCall call_;
  Bytes to_columns_;
  Bytes of_column_;
  Bytes to_hosts_;
};

}  // namespace

void add_all_to_all(HostsOperation& operation, const HostGrid& grid, int rank, const AllToAllCall& call) {
  const auto all_to_all = std::make_shared<AllToAll>(grid, rank, call);
  operation.stages.push_back(
      {Side::kInside, [=](Communicator& inside, auto& works) { all_to_all->send_to_columns(inside, works); }, {}});
  operation.stages.push_back({Side::kBetween,
                              [=](Communicator& between, auto& works) { all_to_all->send_to_hosts(between, works); },
                              [=] { all_to_all->finish(); }});
}

}  // namespace zeropage::comm
