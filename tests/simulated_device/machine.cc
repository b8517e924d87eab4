#include "machine.h"

#include <cstdlib>
#include <stdexcept>
#include <utility>

namespace simulated_device {
namespace {

constexpr std::size_t kDeviceBytes = std::size_t{16} << 30;  // addresses; memory is taken when it is used
constexpr std::size_t kMostFaults = 100;

}  // namespace

Machine& Machine::get() {
  static auto* machine = new Machine();  // never destroyed: the streams' threads use it until the process ends
  return *machine;
}

Machine::Machine() : pinned_(*this) {
  const bool one_queue = std::getenv("ZEROPAGE_SIMULATED_ONE_QUEUE") != nullptr;
  int actor = 0;
  for (int device = 0; device < kDevices; ++device) {
    memory_[device] = std::make_unique<Arena>("simulated device", kDeviceBytes, true);
    for (int id = 0; id <= kStreamsInPool; ++id) {
      streams_[device][id] = std::make_unique<Stream>(device, id, actor++);
      if (one_queue && id > 0) streams_[device][id]->share(*streams_[device][0]);
    }
  }
}

Stream& Machine::stream_of_pool(int device) {
  const std::lock_guard lock(mutex_);
  const int id = 1 + next_of_pool_[device];
  next_of_pool_[device] = (next_of_pool_[device] + 1) % kStreamsInPool;
  return *streams_[device][id];
}

void* Machine::inside(const void* address, int device) {
  if (memory_[device]->contains(address)) return memory_[device]->inside(address);
  if (pinned_.contains(address)) return pinned_.inside(address);
  return nullptr;
}

const std::string* Machine::intern(const std::string& what) { return &*names_.insert(what).first; }

void Machine::note(Stream& stream, const std::string* what, const Use& use) {
  const auto begin = reinterpret_cast<std::uintptr_t>(use.data);
  const Span bytes{begin, begin + use.span_bytes};
  const Access now{stream.actor, stream.tick, what};
  const bool locked = pinned_.contains(use.data);
  if (!locked) (use.writes ? counters_.bytes_written : counters_.bytes_read) += use.bytes;
  std::string reported;
  history_.note(bytes, use.writes, now, stream.clock, [&](const Access& before, bool wrote, Span both) {
    if (!reported.empty() && reported == *before.what) return;  // once per pair
    reported = *before.what;
    report("race: " + *what + (use.writes ? " writes " : " reads ") +
           (locked ? "page-locked memory that " : "memory that ") + *before.what + (wrote ? " writes" : " reads") +
           ", and nothing orders the two (" + std::to_string(both.end - both.begin) + " bytes)");
  });
  if (locked) pinned_.expect(bytes, use.writes, now);
}

void Machine::launch(Stream& stream, const std::string& what, const std::vector<Use>& uses,
                     std::function<void()> task) {
  const std::lock_guard lock(mutex_);
  const std::string* name = intern(what + " on " + stream.name());
  ++counters_.tasks;
  stream.clock.join(host_);
  stream.clock.set(stream.actor, ++stream.tick);
  for (const auto& use : uses) note(stream, name, use);
  stream.push([this, name, task = std::move(task)] {
    try {
      task();
    } catch (const std::exception& error) {
      const std::lock_guard error_lock(error_mutex_);
      if (error_.empty()) error_ = "simulated device: " + *name + " failed: " + error.what();
    }
  });
}

void Machine::hold(Stream& stream, std::chrono::milliseconds limit) {
  auto end = std::make_shared<Point>(Clock());
  {
    const std::lock_guard lock(mutex_);
    held_.push_back(end);
  }
  launch(stream, "an operation that does not end", {}, [end, limit] { end->wait_for(limit); });
}

void Machine::let_go() {
  const std::lock_guard lock(mutex_);
  for (const auto& end : std::exchange(held_, {})) end->reach();
}

PointPtr Machine::record_locked(Stream& stream) {
  stream.clock.join(host_);
  auto point = std::make_shared<Point>(stream.clock);
  stream.push([point] { point->reach(); });
  return point;
}

PointPtr Machine::record(Stream& stream) {
  const std::lock_guard lock(mutex_);
  return record_locked(stream);
}

void Machine::block(Stream& stream, const PointPtr& point) {
  const std::lock_guard lock(mutex_);
  stream.clock.join(point->clock);
  stream.push([point] { point->wait(); });
}

void Machine::learn(const Clock& clock) {
  host_.join(clock);
  pinned_.release_known(host_);
}

void Machine::wait(const PointPtr& point, std::int64_t Counters::*counter) {
  point->wait();
  {
    const std::lock_guard lock(mutex_);
    ++(counters_.*counter);
    learn(point->clock);
  }
  rethrow();
}

bool Machine::query(const PointPtr& point) {
  if (!point->reached()) return false;
  const std::lock_guard lock(mutex_);
  learn(point->clock);
  ++counters_.polled;
  return true;
}

void Machine::wait_unnoticed(const PointPtr& point) {
  point->wait();
  rethrow();
}

void Machine::synchronize(int device) {
  std::vector<PointPtr> points;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& stream : streams_[device]) {
      if (stream->tick > 0) points.push_back(record_locked(*stream));
    }
  }
  for (const auto& point : points) point->wait();
  {
    const std::lock_guard lock(mutex_);
    ++counters_.waits;
    for (const auto& point : points) learn(point->clock);
  }
  rethrow();
}

void Machine::drain() {
  for (auto& device : streams_) {
    for (auto& stream : device) {
      if (stream->tick > 0) record(*stream)->wait();
    }
  }
}

void Machine::forget(Span bytes) {
  const std::lock_guard lock(mutex_);
  history_.forget(bytes);
}

void Machine::set_delays(const Delays& delays) {
  for (auto& device : streams_) {
    for (auto& stream : device) stream->set_delays(delays);
  }
}

Counters Machine::counters() {
  const std::lock_guard lock(mutex_);
  return counters_;
}

void Machine::reset_counters() {
  const std::lock_guard lock(mutex_);
  counters_ = {};
}

void Machine::report(const std::string& fault) {
  const std::lock_guard lock(mutex_);
  if (faults_.size() < kMostFaults) faults_.push_back(fault);
}

std::vector<std::string> Machine::take_faults() {
  const std::lock_guard lock(mutex_);
  return std::exchange(faults_, {});
}

void Machine::rethrow() {
  const std::lock_guard lock(error_mutex_);
  if (!error_.empty()) throw std::runtime_error(std::exchange(error_, {}));
}

}  // namespace simulated_device
