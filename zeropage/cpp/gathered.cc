#include "zeropage/cpp/gathered.h"

#include <exception>
#include <utility>

#include "zeropage/base/error.h"
#include "zeropage/engine/init.h"

namespace zeropage {

Gathered::Gathered(End end, std::optional<int> modifier_rank)
    : end_(std::move(end)), modifier_rank_(modifier_rank.value_or(-1)), exceptions_(std::uncaught_exceptions()) {}

Gathered::Gathered(Gathered&& other) noexcept
    : end_(std::exchange(other.end_, nullptr)), modifier_rank_(other.modifier_rank_), exceptions_(other.exceptions_) {}

Gathered::~Gathered() noexcept(false) {
  if (!end_) return;
  const bool failing = std::uncaught_exceptions() > exceptions_;
  end_(failing ? -1 : modifier_rank_);
}

Gathered gathered(const std::vector<at::Tensor>& parameters, std::optional<int> modifier_rank) {
  if (modifier_rank.value_or(0) < 0) throw UsageError("gathered: modifier_rank is negative; ranks count from 0");
  std::vector<at::Tensor> deferred;
  for (const auto& parameter : parameters) {
    if (engine::is_deferred(parameter)) deferred.push_back(parameter);
  }
  engine::gather_deferred(deferred);
  return Gathered([deferred](int modifier) { engine::release_deferred(deferred, modifier); }, modifier_rank);
}

}  // namespace zeropage
