#include "zeropage/engine/speculation.h"

#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "zeropage/base/digest.h"
#include "zeropage/base/log.h"
#include "zeropage/engine/streamed_state_store.h"
#include "zeropage/memory/device_buffer.h"
#include "zeropage/paging/device_wait.h"

namespace zeropage::engine {
namespace {

/// On all of torch's threads.
void copy_host(std::byte* to, const void* from, std::int64_t bytes) {
  at::parallel_for(0, bytes, /*grain_size=*/1 << 20, [&](std::int64_t begin, std::int64_t end) {
    std::memcpy(to + begin, static_cast<const std::byte*>(from) + begin, static_cast<std::size_t>(end - begin));
  });
}

/// This thread's teams are one thread smaller: the backward launches its work from the remaining processor.
void leave_a_processor() {
  // The first use in a new thread sets its number, once in this library (for parallel_for) and once in torch.
  at::internal::lazy_init_num_threads();
  const int threads = at::get_num_threads();
  if (threads > 1) omp_set_num_threads(threads - 1);
}

}  // namespace

Speculation::Speculation(const config::Config& config, ModelState& state, reduce::Reducer& reducer, UpdatePass& pass,
                         c10::Device device, std::int64_t log_bytes, const std::shared_ptr<Ledger>& ledger)
    : config_(config),
      state_(state),
      reducer_(reducer),
      pass_(pass),
      device_(device),
      log_(log_bytes, optimizer_host(config, device), ledger, MemoryKind::kBuffers),
      received_(state.tensors().size(), true) {
  if (log_bytes == 0) return;
  reducer.listen([this](int page) { enqueue(page); }, [this](int page) { rollback(page); });
  state.before_user_write([this](int page) { rollback(page); });
  thread_ = std::jthread([this](const std::stop_token& stop) { run(stop); });
}

void Speculation::begin(double divisor, const std::vector<config::OptimizerParams>& groups,
                        const std::vector<std::int64_t>& steps) {
  if (log_.bytes() == 0) return;
  if (parameters_copied_) {
    paging::wait_for(*parameters_copied_, state_.communicator(), "the copy of updated parameters to the device");
  }
  const auto lock = stop_queue();
  gradient_scale_ = static_cast<float>(1.0 / divisor);
  groups_ = groups;
  steps_ = steps;
  for (auto& step : steps_) ++step;
  if (ahead_.empty()) used_bytes_ = 0;
  open_ = last_step_as_expected_;
}

bool Speculation::may_begin(int page) const {
  auto& pager = state_.pager();
  if (!state_.offloaded()[page] || !state_.state_store().device(page).is_cpu() || pager.is_written(page)) return false;
  if (pager.on_disk(page) || reducer_.on_disk(page)) return false;
  if (state_.is_own_master(page) && !pager.paged(page) && !device_.is_cpu()) return false;
  return std::ranges::all_of(state_.layout()->pages()[page].placements,
                             [&](const auto& place) { return reducer_.received_since_reset()[place.parameter]; });
}

void Speculation::enqueue(int page) {
  if (!may_begin(page)) return;
  const std::lock_guard lock(mutex_);
  if (!open_) return;
  QueuedPage queued{page, {}};
  if (!reducer_.gradient(page).device.is_cpu()) {  // gradients on the host have arrived there
    queued.ready.emplace(device_.type());
    queued.ready->record(memory::current_stream(device_));
  }
  queue_.push_back(std::move(queued));
  changed_.notify_all();
}

void Speculation::run(const std::stop_token& stop) {
  const c10::AutoGradMode no_grad(false);
  leave_a_processor();
  // A separate stream, so that copies do not wait for the backward's work in its streams.
  c10::OptionalStreamGuard stream;
  if (!device_.is_cpu())
    stream.reset_stream(c10::impl::VirtualGuardImpl(device_.type()).getStreamFromGlobalPool(device_));
  std::unique_lock lock(mutex_);
  while (changed_.wait(lock, stop, [&] { return !queue_.empty(); }) && !stop.stop_requested()) {
    const QueuedPage queued = std::move(queue_.front());
    queue_.pop_front();
    page_at_work_ = queued.page;
    lock.unlock();
    std::optional<Ahead> ahead;
    bool failed = false;
    try {
      ahead = update_ahead(queued);
    } catch (const std::exception& error) {
      failed = true;
      log_warn(fmt::format("the update of {} overlapped with the backward failed, and is left to the step: {}",
                           paging::page_label(*state_.layout(), queued.page), error.what()));
    }
    lock.lock();
    page_at_work_ = kNoPage;
    if (ahead) {
      ahead_.push_back(std::move(*ahead));
      ++begun_;
    }
    if (failed) {
      open_ = false;
      queue_.clear();
    }
    changed_.notify_all();
  }
}

/// nullopt when the log has no room for the page.
std::optional<Speculation::Ahead> Speculation::update_ahead(const QueuedPage& queued) {
  const int page = queued.page;
  const auto& own = state_.owned(page);
  const auto& spec = state_.layout()->pages()[page];
  const auto state_bytes =
      static_cast<std::int64_t>(HeldState(state_.state_store(), page, Access::kRead).arrays().memory.size());
  const std::int64_t parameter_bytes = own.numel * spec.element_bytes;
  if (used_bytes_ + state_bytes + parameter_bytes > log_.bytes()) return std::nullopt;

  const Span span(state_.pager().handle()->timeline.get(), SpanKind::kOperator, "update of a page ahead", page);
  if (queued.ready) paging::wait_for(*queued.ready, state_.communicator(), "a sum of gradients");
  pass_.fetch(page);
  const HeldArrays held(pass_, page, ParameterUse::kRead);
  Ahead ahead{page, log_.data() + used_bytes_, log_.data() + used_bytes_ + state_bytes, {}, {}};
  copy_host(ahead.old_state, held.state_memory().data(), state_bytes);
  auto arrays = held.arrays();
  if (state_.is_own_master(page)) {
    copy_host(ahead.parameter, arrays.parameter, parameter_bytes);
    if (!state_.pager().paged(page)) {
      ahead.old_parameter = digest64(ahead.parameter, parameter_bytes);
    }
  }
  arrays.parameter = ahead.parameter;
  if (spec.dtype == DType::kFloat32) arrays.master = reinterpret_cast<float*>(ahead.parameter);
  ahead.segments =
      changed_segments(state_, page, {config_.optimizer.kind, groups_, steps_, received_, gradient_scale_}).segments;
  used_bytes_ += state_bytes + parameter_bytes;
  try {
    update_on_host(arrays, ahead.segments);
  } catch (...) {
    copy_host(held.state_memory().data(), ahead.old_state, state_bytes);
    throw;
  }
  return ahead;
}

/// When it returns, and while the lock is held, nothing is queued and no page is being updated.
std::unique_lock<std::mutex> Speculation::stop_queue() {
  std::unique_lock lock(mutex_);
  queue_.clear();
  changed_.wait(lock, [&] { return page_at_work_ == kNoPage; });
  return lock;
}

void Speculation::wait() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return queue_.empty() && page_at_work_ == kNoPage; });
}

void Speculation::rollback(int page) {
  std::unique_lock lock(mutex_);
  std::erase_if(queue_, [&](const QueuedPage& queued) { return queued.page == page; });
  changed_.wait(lock, [&] { return page_at_work_ != page; });
  std::erase_if(ahead_, [&](const Ahead& ahead) {
    if (ahead.page == page) put_back(ahead);
    return ahead.page == page;
  });
}

int Speculation::close() {
  const auto lock = stop_queue();
  open_ = false;
  return std::exchange(begun_, 0);
}

int Speculation::validate(const UpdateInputs& inputs) {
  last_step_as_expected_ = inputs.gradient_scale == gradient_scale_;
  std::erase_if(ahead_, [&](const Ahead& ahead) {
    if (is_still_valid(ahead, inputs)) return false;
    put_back(ahead);
    last_step_as_expected_ = false;
    return true;
  });
  return static_cast<int>(ahead_.size());
}

bool Speculation::is_still_valid(const Ahead& ahead, const UpdateInputs& inputs) const {
  if (changed_segments(state_, ahead.page, inputs).segments != ahead.segments) return false;
  if (ahead.old_parameter.empty()) return true;
  const auto& own = state_.owned(ahead.page);
  const std::int64_t bytes = own.numel * state_.layout()->pages()[ahead.page].element_bytes;
  return digest64(own.parameter, bytes) == ahead.old_parameter;
}

void Speculation::undo() {
  const auto lock = stop_queue();
  open_ = false;
  last_step_as_expected_ = false;
  begun_ = 0;
  for (const auto& ahead : ahead_) put_back(ahead);
  ahead_.clear();
}

void Speculation::put_back(const Ahead& ahead) {
  const HeldState held(state_.state_store(), ahead.page, Access::kWrite);
  const auto memory = held.arrays().memory;
  copy_host(memory.data(), ahead.old_state, static_cast<std::int64_t>(memory.size()));
}

bool Speculation::is_ahead(int page) const { return std::ranges::find(ahead_, page, &Ahead::page) != ahead_.end(); }

void Speculation::commit(int page) {
  const auto ahead = std::ranges::find(ahead_, page, &Ahead::page);
  const auto& own = state_.owned(page);
  const std::int64_t element = state_.layout()->pages()[page].element_bytes;
  for (const auto& segment : ahead->segments) {
    memory::flat_view(own.parameter + segment.offset * element, segment.numel * element, at::kByte, own.device)
        .copy_(memory::flat_view(ahead->parameter + segment.offset * element, segment.numel * element, at::kByte,
                                 c10::kCPU),
               /*non_blocking=*/true);
  }
  ahead_.erase(ahead);
  if (!ahead_.empty() || device_.is_cpu()) return;
  if (!parameters_copied_) parameters_copied_.emplace(device_.type());
  parameters_copied_->record(memory::current_stream(device_));
}

std::int64_t undo_log_bytes(const config::Config& config, const formula::ParameterCounts& counts,
                            const formula::StateOptions& options, c10::Device device) {
  const bool possible = optim::takes_one_pass(config.optimizer.kind) &&
                        config.zero.offload.optimizer == config::OffloadDevice::kCpu &&
                        !is_updated_on_device(config, device);
  if (!possible) return 0;
  const std::int64_t by_default = device.is_cpu() ? 0 : formula::default_undo_log_bytes(counts, options);
  return config.zeropage.speculation_bytes.value_or(by_default);
}

}  // namespace zeropage::engine
