/// \file
/// A model of ones on a single rank, for tests of an engine's parts.
#pragma once

#include <ATen/ops/ones.h>

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "zeropage/comm/thread_communicator.h"
#include "zeropage/engine/engine.h"

namespace zeropage::engine {

struct TestModel {
  explicit TestModel(const std::vector<std::int64_t>& numels) {
    for (const std::int64_t numel : numels) {
      parameters.push_back(at::ones({numel}).set_requires_grad(true));
      inputs.push_back({"p" + std::to_string(inputs.size()), parameters.back(), 0});
    }
  }

  std::shared_ptr<comm::Communicator> communicator =
      std::move(comm::make_thread_communicators(1, std::chrono::seconds(20))[0]);
  std::shared_ptr<Ledger> ledger = std::make_shared<Ledger>();
  std::vector<at::Tensor> parameters;
  std::vector<ParameterInput> inputs;
};

}  // namespace zeropage::engine
