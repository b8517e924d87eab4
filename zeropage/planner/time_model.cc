#include "zeropage/planner/time_model.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "zeropage/planner/memory_model.h"

namespace zeropage::planner {
namespace {

constexpr double kUpdateBytes = 30;
constexpr double kUpdateReadBytes = 16;
constexpr double kUpdateWriteBytes = 14;
constexpr double kCopyBytes = 16;      ///< of masters for an optimizer of PyTorch, there and back
constexpr double kExchangeBytes = 12;  ///< per element of parameters that lie in several shards

/// Parts of a step that run one after the other. The name of a part is what the step waits for in it.
class Clock {
 public:
  explicit Clock(double overlap) : overlap_(overlap) {}

  void add(const std::string& name, double seconds) {
    parts_[name] += seconds;
    step_s_ += seconds;
  }

  /// Parts that run at the same time: adds the time of the slowest, and the share of the others that does not overlap.
  void add_overlapped(const std::map<std::string, double>& parts) {
    const auto slowest = std::ranges::max_element(parts, {}, &std::pair<const std::string, double>::second);
    for (const auto& [name, seconds] : parts) add(name, name == slowest->first ? seconds : (1 - overlap_) * seconds);
  }

  TimeEstimate result(double compute_s) const {
    const auto largest = std::ranges::max_element(parts_, {}, &std::pair<const std::string, double>::second);
    return {compute_s, step_s_, largest->first};
  }

 private:
  double overlap_;
  std::map<std::string, double> parts_;
  double step_s_ = 0;
};

/// Elements whose optimizer state a rank has.
double owned_numel(const Request& request, const Strategy& strategy) {
  return static_cast<double>(request.model.trainable_numel) /
         (strategy.stage == 0 ? 1 : request.state_ranks(strategy.stage));
}

double update_bytes(const Request& request) { return kUpdateBytes + (request.optimizer.by_torch ? kCopyBytes : 0); }

/// Seconds of the products of Muon's update.
double products_s(const Request& request, const Strategy& strategy) {
  if (!request.optimizer.is_muon()) return 0;
  const double share = strategy.stage == 0 ? 1.0 : 1.0 / request.state_ranks(strategy.stage);
  return share * static_cast<double>(request.model.muon_numel) *
         muon_operations(static_cast<double>(request.model.shape.hidden)) / request.hardware->flops;
}

/// Seconds in which parameters that lie in several shards are sent to their owners and back: those of pages with less
/// than one large parameter for each rank (layout/whole_pages.h).
double exchange_s(const Request& request, const Strategy& strategy) {
  if (!request.optimizer.by_torch || strategy.stage == 0 || request.world_size() == 1) return 0;
  const double page_share =
      static_cast<double>(page_numel(request, strategy.stage)) / request.state_ranks(strategy.stage);
  if (static_cast<double>(request.model.largest_numel) <= page_share) return 0;
  const Hardware& hardware = *request.hardware;
  const bool between_hosts = request.hosts > 1 && !request.in_groups(strategy.stage);
  const double link =
      between_hosts ? std::min(hardware.device_link_rate, hardware.network_rate) : hardware.device_link_rate;
  const std::int64_t whole = request.optimizer.is_muon() ? request.model.muon_numel : request.model.trainable_numel;
  return kExchangeBytes * static_cast<double>(whole) / link;
}

/// Seconds of the single pieces of work.
struct Pieces {
  double forward_s = 0;
  double backward_s = 0;      ///< with the recomputation
  double gather_s = 0;        ///< all parameters once
  double gather_again_s = 0;  ///< the same before the next update
  double reduce_s = 0;        ///< reduce-scatter of all gradients
  double spread_s = 0;        ///< their sums to all ranks
  double host_out_s = 0;      ///< this rank's gradients to the host
  double host_in_s = 0;       ///< this rank's parameters from the host
  double disk_in_s = 0;       ///< this rank's parameters from the disk
};

/// Whether ranks of a host combine their data before they communicate with other hosts.
bool goes_by_hosts(const Request& request) {
  return request.hardware->is_cpu && request.hosts > 1 && request.devices_per_host > 1;
}

/// Seconds per gathered byte.
double gather_s_per_byte(const Request& request, int stage) {
  const Hardware& hardware = *request.hardware;
  if (request.in_groups(stage)) return (request.shard_ranks - 1.0) / request.shard_ranks / hardware.device_link_rate;
  const double world = request.world_size();
  const double hosts = request.hosts;
  const double local = request.devices_per_host;
  if (goes_by_hosts(request)) {
    return std::max((local - 1) / local / hardware.device_link_rate, (hosts - 1) / hosts / hardware.network_rate);
  }
  const double link =
      hosts > 1 ? std::min(hardware.device_link_rate, hardware.network_rate) : hardware.device_link_rate;
  return (world - 1) / world / link;
}

double groups_of(const Request& request) { return static_cast<double>(request.world_size()) / request.shard_ranks; }

/// The number of messages that a sum needs to pass all groups, plus those of the broadcast of the result.
double group_hops(const Request& request) {
  const double groups = groups_of(request);
  return groups - 1 + std::ceil(std::log2(groups));
}

/// Seconds per reduced element in groups: terms inside a group, then fp32 sums from group to group and back.
double reduce_in_groups_s(const Request& request, double term_bytes) {
  const Hardware& hardware = *request.hardware;
  const double count = request.shard_ranks;
  const double between =
      request.hosts > 1 ? hardware.network_rate / request.devices_per_host : hardware.device_link_rate;
  return (count - 1) / count * term_bytes / hardware.device_link_rate + group_hops(request) * 4 / count / between;
}

/// Seconds per reduced element. `wire_bytes` of an element: in a rank's message, or of coded sums of hosts;
/// `term_bytes`: of a rank's term.
double reduce_s_per_element(const Request& request, double wire_bytes, double term_bytes) {
  const Hardware& hardware = *request.hardware;
  const double world = request.world_size();
  const double hosts = request.hosts;
  const double local = request.devices_per_host;
  const double direct = local * (hosts - 1) / hosts * wire_bytes;  // every rank to every owner
  if (!goes_by_hosts(request)) {
    return std::max((world - 1) / world * wire_bytes / hardware.device_link_rate, direct / hardware.network_rate);
  }
  const double between = wire_bytes < term_bytes ? (hosts - 1) / hosts * wire_bytes
                                                 : std::min(direct, 4 * (hosts - 1) * (hosts + 1) / (hosts * hosts));
  return std::max((local - 1) / local * term_bytes / hardware.device_link_rate, between / hardware.network_rate);
}

Pieces pieces_of(const Request& request, const Strategy& strategy, bool checkpointing) {
  const Hardware& hardware = *request.hardware;
  const Model& model = request.model;
  const double world = request.state_ranks(strategy.stage);
  const double tokens = static_cast<double>(request.micro_batch) * static_cast<double>(request.sequence);
  const double attention = 2.0 * static_cast<double>(model.shape.layers) * static_cast<double>(model.shape.hidden) *
                           static_cast<double>(request.sequence);
  const double pass_s = tokens * (static_cast<double>(model.active_numel) + attention) / hardware.flops;
  const bool in_groups = request.in_groups(strategy.stage);
  const double between_hosts = in_groups ? 0 : request.hosts - 1;
  const double hops_s =
      (world - 1 - between_hosts) * hardware.device_latency_s + between_hosts * hardware.network_latency_s;
  const double pages =
      std::ceil(static_cast<double>(model.total_numel) / static_cast<double>(page_numel(request, strategy.stage)));
  const double latency_s = hops_s * pages;
  const auto element = static_cast<double>(element_bytes(formula::compute_dtype(request.precision)));
  const bool sums_whole = strategy.stage < 2 && request.accumulation_steps > 1;
  const double all_bytes = element * static_cast<double>(model.total_numel);
  Pieces pieces;
  pieces.forward_s = 2 * pass_s;
  pieces.backward_s = (checkpointing ? 6 : 4) * pass_s;
  const double gathered = request.gathers_in_8_bits(strategy.stage) ? kBytesIn8Bits : element;
  const double reduced = request.reduces_in_4_bits(strategy.stage) ? kBytesIn4Bits : sums_whole ? 4 : element;
  pieces.gather_s =
      gathered * static_cast<double>(model.total_numel) * gather_s_per_byte(request, strategy.stage) + latency_s;
  pieces.gather_again_s = pieces.gather_s;
  if (const double nearby = request.second_shards(strategy); nearby > 1) {
    pieces.gather_again_s = all_bytes * (nearby - 1) / nearby / hardware.device_link_rate +
                            (nearby - 1) * hardware.device_latency_s * pages;
  }
  const auto trainable_numel = static_cast<double>(model.trainable_numel);
  const double term = sums_whole ? 4 : element;
  if (in_groups) {
    const double hop_s = request.hosts > 1 ? hardware.network_latency_s : hardware.device_latency_s;
    pieces.reduce_s =
        trainable_numel * reduce_in_groups_s(request, term) + latency_s + group_hops(request) * hop_s * pages;
  } else {
    pieces.reduce_s = trainable_numel * reduce_s_per_element(request, reduced, term) + latency_s;
  }
  pieces.spread_s = trainable_numel * reduced * gather_s_per_byte(request, strategy.stage) + latency_s;
  pieces.host_out_s = element * static_cast<double>(model.trainable_numel) / world / hardware.host_link_rate;
  pieces.host_in_s = all_bytes / world / hardware.host_link_rate;
  pieces.disk_in_s = all_bytes / world * request.devices_per_host / hardware.disk_read_rate;
  return pieces;
}

/// Seconds of an update of optimizer state in host memory: if the host updates it (all devices of a host share its
/// memory), and if the link copies it to the device and back.
struct HostStateUpdate {
  double on_host_s = 0;
  double over_link_s = 0;
};

HostStateUpdate update_of_host_state(const Request& request, const Strategy& strategy) {
  const Hardware& hardware = *request.hardware;
  const double owned = owned_numel(request, strategy);
  const auto element = static_cast<double>(element_bytes(formula::compute_dtype(request.precision)));
  const double gradient = strategy.stage >= 2 ? element : 0;
  const double parameter = strategy.parameters == StateMemory::kDevice ? 0 : element;
  const auto state = static_cast<double>(engine_element_bytes(request.optimizer, request.precision));
  return {owned * request.devices_per_host * update_bytes(request) / hardware.host_memory_rate,
          owned * (state + std::max(gradient, parameter)) / hardware.host_link_rate};
}

/// `times` micro batches; `reduces`: with the reduction of gradients; `on_device`: whether the device updates with
/// them. `gather_s`: all parameters for the forward, at stage 3.
void add_micro_batches(Clock& clock, const Pieces& pieces, const Strategy& strategy, double times, double gather_s,
                       bool reduces, bool on_device) {
  const double loads_s = strategy.parameters != StateMemory::kDevice ? pieces.host_in_s : 0;
  const double reads_s = strategy.parameters == StateMemory::kDisk ? pieces.disk_in_s : 0;
  const double forward_gather_s = strategy.stage == 3 ? gather_s : 0;
  const double backward_gather_s = strategy.stage == 3 ? pieces.gather_again_s : 0;
  const double reduce_s = reduces ? pieces.reduce_s + (strategy.stage == 0 ? pieces.spread_s : 0) : 0;
  const bool stores = strategy.optimizer != StateMemory::kDevice && !(on_device && strategy.stage < 2);
  const double stores_s = reduces && stores ? pieces.host_out_s : 0;
  clock.add_overlapped({{"computation", times * pieces.forward_s},
                        {"gathering parameters", times * forward_gather_s},
                        {"host link", times * loads_s},
                        {"disk", times * reads_s}});
  clock.add_overlapped({{"computation", times * pieces.backward_s},
                        {backward_gather_s >= reduce_s ? "gathering parameters" : "reducing gradients",
                         times * (backward_gather_s + reduce_s)},
                        {"host link", times * std::max(loads_s, stores_s)},
                        {"disk", times * reads_s}});
}

void add_boundary(Clock& clock, const Request& request, const Pieces& pieces, const Strategy& strategy) {
  const Hardware& hardware = *request.hardware;
  const double owned = owned_numel(request, strategy);
  const double device_s = owned * update_bytes(request) / hardware.device_memory_rate + products_s(request, strategy);
  const auto of_host_state = update_of_host_state(request, strategy);
  if (strategy.optimizer == StateMemory::kDevice) {
    clock.add("update on the device", device_s);
  } else if (is_updated_on_device(request, strategy)) {
    clock.add_overlapped({{"update on the device", device_s}, {"host link", of_host_state.over_link_s}});
  } else {
    const double disk_s =
        strategy.optimizer == StateMemory::kDisk
            ? owned * request.devices_per_host *
                  std::max(kUpdateReadBytes / hardware.disk_read_rate, kUpdateWriteBytes / hardware.disk_write_rate)
            : 0;
    clock.add_overlapped(
        {{"update on the host", of_host_state.on_host_s}, {"host link", pieces.host_in_s}, {"disk", disk_s}});
  }
  if (const double seconds = exchange_s(request, strategy); seconds > 0) clock.add("parts of parameters", seconds);
  if (strategy.stage == 1 || strategy.stage == 2) clock.add("gathering parameters", pieces.gather_s);
}

}  // namespace

bool is_updated_on_device(const Request& request, const Strategy& strategy) {
  if (strategy.optimizer != StateMemory::kHost || !request.hardware || request.optimizer.by_torch) return false;
  if (strategy.parameters == StateMemory::kDisk) return false;
  const Hardware& hardware = *request.hardware;
  if (hardware.device_memory_rate * request.devices_per_host <= hardware.host_memory_rate) return false;
  const auto update = update_of_host_state(request, strategy);
  return update.over_link_s < update.on_host_s;
}

TimeEstimate estimate_time(const Request& request, const Strategy& strategy, bool checkpointing) {
  const Pieces pieces = pieces_of(request, strategy, checkpointing);
  const auto times = static_cast<double>(request.accumulation_steps);
  Clock clock(request.hardware->overlap);
  const double reducing = strategy.stage >= 2 ? times : 1;  // whole gradients are reduced once a step
  const bool on_device = is_updated_on_device(request, strategy);
  add_micro_batches(clock, pieces, strategy, times - reducing, pieces.gather_again_s, false, on_device);
  add_micro_batches(clock, pieces, strategy, 1, pieces.gather_s, true, on_device);  // the first one at stage 3
  add_micro_batches(clock, pieces, strategy, reducing - 1, pieces.gather_again_s, true, on_device);
  add_boundary(clock, request, pieces, strategy);
  return clock.result(times * (pieces.forward_s + pieces.backward_s));
}

}  // namespace zeropage::planner
