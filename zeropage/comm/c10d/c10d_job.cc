#include "zeropage/comm/c10d/c10d_job.h"

#include <string>
#include <utility>

// torch's headers last: they define macros.
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#ifdef USE_C10D_NCCL
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>
#endif

#include "zeropage/base/error.h"
#include "zeropage/comm/c10d/c10d_communicator.h"
#include "zeropage/comm/c10d/c10d_store.h"

namespace zeropage::comm {
namespace {

using std::chrono::milliseconds;
using BackendPtr = c10::intrusive_ptr<c10d::Backend>;
using BackendType = c10d::ProcessGroup::BackendType;
using GroupPtr = c10::intrusive_ptr<c10d::ProcessGroup>;
using StorePtr = c10::intrusive_ptr<c10d::Store>;

BackendPtr make_gloo(const StorePtr& store, const World& world, milliseconds timeout) {
  return c10::make_intrusive<c10d::ProcessGroupGloo>(store, world.rank, world.size,
                                                     c10d::ProcessGroupGloo::Options::create_default(timeout));
}

BackendPtr make_nccl(const StorePtr& store, const World& world, milliseconds timeout) {
#ifdef USE_C10D_NCCL
  auto options = c10d::ProcessGroupNCCL::Options::create();
  options->timeout = timeout;
  return c10::make_intrusive<c10d::ProcessGroupNCCL>(store, world.rank, world.size, std::move(options));
#else
  throw ConfigError(
      "ranks on GPUs talk through NCCL, and this zeropage was built without the headers of CUDA and NCCL. Build it "
      "where they are, or hand communicators over in Options::communicator and reductions");
#endif
}

GroupPtr make_group(const StorePtr& store, const char* name, BackendType type, c10::DeviceType device,
                    const World& world, milliseconds timeout) {
  const StorePtr own = c10::make_intrusive<c10d::PrefixStore>(name, store);
  auto group = c10::make_intrusive<c10d::ProcessGroup>(own, world.rank, world.size);
  const bool nccl = type == BackendType::NCCL;
  group->setBackend(device, type, nccl ? make_nccl(own, world, timeout) : make_gloo(own, world, timeout));
  group->setDefaultBackend(type);
  return group;
}

}  // namespace

std::unique_ptr<Communicator> join_c10d_job(const World& world, const Meeting& meeting, const std::string& token,
                                            std::int64_t number, c10::Device device, bool deterministic_reduction,
                                            milliseconds timeout) {
  const auto data_type = device.is_cpu() ? BackendType::GLOO : BackendType::NCCL;
  const StorePtr job = job_store(world, meeting, token, timeout);
  try {
    const StorePtr store = c10::make_intrusive<c10d::PrefixStore>(std::to_string(number), job);
    auto data = make_group(store, "data", data_type, device.type(), world, timeout);
    auto control = make_group(store, "control", BackendType::GLOO, at::kCPU, world, timeout);
    return make_c10d_communicator(std::move(data), std::move(control), device, deterministic_reduction, timeout);
  } catch (...) {
    rethrow_not_joined(world, meeting);
  }
}

}  // namespace zeropage::comm
