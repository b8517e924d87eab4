#include "zeropage/engine/speculation.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <utility>

#include "zeropage/optim/norm.h"

namespace zeropage::engine {
namespace {

bool is_own_master(const layout::Page& page) { return page.dtype == DType::kFloat32; }

void copy_host(void* to, const void* from, std::int64_t bytes) {
  std::memcpy(to, from, static_cast<std::size_t>(bytes));
}

}  // namespace

Speculation::Speculation(const config::Config& config, ModelState& state, const reduce::Reducer& reducer,
                         Transit& transit, std::int64_t log_bytes, paging::MemoryPlace host,
                         const std::shared_ptr<Ledger>& ledger)
    : config_(config),
      state_(state),
      reducer_(reducer),
      transit_(transit),
      log_(log_bytes, host, ledger, MemoryKind::kBuffers) {}

bool Speculation::may_begin(int page) const {
  if (!state_.offloaded()[page] || !state_.home().device(page).is_cpu() || state_.pager().is_written(page))
    return false;
  if (state_.pager().on_disk(page) || reducer_.on_disk(page)) return false;
  const auto& own = state_.owned(page);
  if (is_own_master(state_.layout()->pages()[page])) return own.device.is_cpu() && !state_.pager().paged(page);
  return state_.has_masters();
}

int Speculation::begin(const LocalVerdict& mine, double divisor, const std::vector<config::OptimizerParams>& groups,
                       std::vector<std::int64_t> steps) {
  // The norm over all ranks is no smaller than this one's part of it.
  const double least_norm = std::sqrt(mine.sum_of_squares) / divisor;
  if (log_.bytes() == 0 || !std::isfinite(least_norm)) return 0;
  if (optim::clip_coefficient(least_norm, config_.gradients.clipping) != 1.0F) return 0;
  for (std::size_t i = 0; i < steps.size(); ++i) steps[i] += mine.received[i] ? 1 : 0;
  gradient_scale_ = static_cast<float>(1.0 / divisor);
  received_ = mine.received;
  const UpdateInputs expected{config_.optimizer.kind, groups, steps, received_, gradient_scale_, nullptr};
  try {
    for (const int page : updated_pages(*state_.layout(), received_)) {
      if (may_begin(page) && !begin_page(page, expected)) break;
    }
  } catch (...) {
    undo();
    throw;
  }
  return static_cast<int>(ahead_.size());
}

/// False: the log has no room for it.
bool Speculation::begin_page(int page, const UpdateInputs& expected) {
  const auto& own = state_.owned(page);
  const auto& spec = state_.layout()->pages()[page];
  transit_.fetch(page);
  const HeldArrays held(state_, reducer_, transit_, page, ParameterUse::kRead);
  const auto memory = held.state_memory();
  const auto state_bytes = static_cast<std::int64_t>(memory.size());
  const std::int64_t parameter_bytes = own.numel * spec.element_bytes;
  if (used_bytes_ + state_bytes + parameter_bytes > log_.bytes()) return false;
  Ahead ahead{page, log_.data() + used_bytes_, log_.data() + used_bytes_ + state_bytes, {}};
  copy_host(ahead.old_state, memory.data(), state_bytes);
  auto arrays = held.arrays();
  if (is_own_master(spec)) {
    copy_host(ahead.parameter, own.parameter, parameter_bytes);
  } else {
    arrays.parameter = ahead.parameter;
  }
  ahead.segments = changed_segments(state_, page, expected).segments;
  used_bytes_ += state_bytes + parameter_bytes;
  ahead_.push_back(std::move(ahead));
  update_on_host(arrays, ahead_.back().segments);
  return true;
}

bool Speculation::is_ahead(int page) const { return std::ranges::find(ahead_, page, &Ahead::page) != ahead_.end(); }

void Speculation::finish(int page) {
  const auto ahead = std::ranges::find(ahead_, page, &Ahead::page);
  const auto& own = state_.owned(page);
  const auto& spec = state_.layout()->pages()[page];
  if (!is_own_master(spec)) {
    for (const auto& segment : ahead->segments) {
      const std::int64_t offset = segment.offset * spec.element_bytes;
      paging::copy_bytes(own.parameter + offset, own.device, ahead->parameter + offset, c10::kCPU,
                         segment.numel * spec.element_bytes);
    }
  }
  ahead_.erase(ahead);
  if (ahead_.empty()) used_bytes_ = 0;
}

bool Speculation::settle(const UpdateInputs& inputs) {
  if (ahead_.empty()) return true;
  const auto bits = [](float value) { return std::bit_cast<std::uint32_t>(value); };
  const bool as_expected = bits(inputs.gradient_scale) == bits(gradient_scale_) && inputs.received == received_;
  if (!as_expected) undo();
  return as_expected;
}

void Speculation::undo() {
  for (const auto& ahead : ahead_) put_back(ahead);
  ahead_.clear();
  used_bytes_ = 0;
}

void Speculation::put_back(const Ahead& ahead) {
  const HeldState held(state_.home(), ahead.page, Access::kWrite);
  const auto memory = held.arrays().memory;
  copy_host(memory.data(), ahead.old_state, static_cast<std::int64_t>(memory.size()));
  const auto& spec = state_.layout()->pages()[ahead.page];
  const auto& own = state_.owned(ahead.page);
  if (is_own_master(spec)) copy_host(own.parameter, ahead.parameter, own.numel * spec.element_bytes);
}

std::unique_ptr<Speculation> make_speculation(const config::Config& config, ModelState& state,
                                              const reduce::Reducer& reducer, Transit& transit,
                                              paging::MemoryPlace host, const std::shared_ptr<Ledger>& ledger) {
  const bool possible =
      optim::takes_one_pass(config.optimizer.kind) && config.zero.offload.optimizer == config::OffloadDevice::kCpu;
  return std::make_unique<Speculation>(config, state, reducer, transit, possible ? config.own.speculation_bytes : 0,
                                       host, ledger);
}

}  // namespace zeropage::engine
