/// \file
/// A scope in which parameters are whole, for code that bypasses the dispatcher (data_ptr).
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <optional>
#include <vector>

namespace zeropage {

/// Keeps parameters whole until it is destroyed; see Engine::gathered.
class [[nodiscard]] Gathered {
 public:
  Gathered(Gathered&& other) noexcept;
  /// Ends the scope. After an exception there is no broadcast from the modifier, because other ranks may not call it.
  ~Gathered() noexcept(false);

 private:
  friend class Engine;
  friend Gathered gathered(const std::vector<at::Tensor>& parameters, std::optional<int> modifier_rank);
  using End = std::function<void(int modifier_rank)>;  ///< -1: no modifier
  Gathered(End end, std::optional<int> modifier_rank);

  End end_;
  int modifier_rank_;
  int exceptions_;
};

/// As Engine::gathered, for tensors of an Init scope that no engine has taken over yet; others are not changed.
/// Collective.
/// Errors: UsageError (no such rank), PeerError, TimeoutError.
Gathered gathered(const std::vector<at::Tensor>& parameters, std::optional<int> modifier_rank = std::nullopt);

}  // namespace zeropage
