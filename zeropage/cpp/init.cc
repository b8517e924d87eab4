#include "zeropage/engine/init.h"

#include <torch/nn/module.h>

#include "zeropage/cpp/communicators.h"
#include "zeropage/cpp/init.h"

namespace zeropage {

class Init::Impl {
 public:
  Impl(const config::Config& config, std::shared_ptr<comm::Communicator> communicator, c10::Device device)
      : scope(config, std::move(communicator), device) {}
  engine::Init scope;
};

Init::Init(const Config& config, const Options& options) {
  const comm::World world = cpp::world_of(options);
  auto parsed = config::Config::from_json(config.text(), world.size, config.origin());
  if (parsed.zero.stage < 3 || world.size == 1) return;
  parsed.zeropage.async_save = false;  // an Init scope saves nothing
  const auto joined = cpp::join_ranks(parsed, world, options);
  impl_ = std::make_unique<Impl>(parsed, joined.parameters, cpp::device_of(options));
}

Init::~Init() = default;

void Init::adopt(const torch::nn::Module& module) {
  if (!impl_) return;
  for (const auto& parameter : module.parameters()) impl_->scope.adopt(parameter);
}

}  // namespace zeropage
