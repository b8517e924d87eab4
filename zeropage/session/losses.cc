#include "zeropage/session/losses.h"

#include <ATen/ops/mean.h>
#include <ATen/ops/stack.h>

namespace zeropage::session {

void Losses::add(const at::Tensor& loss, bool first) {
  if (first) losses_.clear();
  losses_.push_back(loss.detach());
}

std::optional<double> Losses::mean(const engine::Engine* core) const {
  if (losses_.empty()) return std::nullopt;
  if (core != nullptr) core->wait_for_device("the loss");
  std::vector<at::Tensor> in_fp32;
  for (const auto& loss : losses_) in_fp32.push_back(loss.to(at::kFloat));
  return at::stack(in_fp32).mean().item<double>();
}

}  // namespace zeropage::session
