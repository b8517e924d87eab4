#include "zeropage/comm/thread_communicator.h"

#include <fmt/format.h>

#include <cstring>
#include <string>
#include <utility>

#include "zeropage/base/error.h"
#include "zeropage/comm/shm/region_communicator.h"

namespace zeropage::comm {
namespace {

class ThreadTransport final : public RegionTransport {
 public:
  std::string lost(int) const override { return ""; }  // a thread ends by closing its communicator
  std::string describe(int) const override { return ""; }

  RegionParts share(Communicator& communicator, std::int64_t bytes, std::string_view label) override {
    // A member, because a peer may still be copying it after an error here.
    shared_ = std::make_shared<MappedRegion>(-1, bytes, std::string(label).c_str());
    const Tag tag{"allocate", bytes};
    const auto* address = &shared_;
    const std::string everyone =
        all_gather_small(communicator, {reinterpret_cast<const char*>(&address), sizeof(address)}, tag);
    RegionParts parts;
    for (int r = 0; r < communicator.size(); ++r) {
      std::memcpy(&address, everyone.data() + static_cast<std::size_t>(r) * sizeof(address), sizeof(address));
      parts.push_back(*address);
    }
    communicator.barrier(tag);
    shared_.reset();
    return parts;
  }

 private:
  std::shared_ptr<MappedRegion> shared_;
};

}  // namespace

std::vector<std::unique_ptr<Communicator>> make_thread_communicators(int size, std::chrono::milliseconds timeout,
                                                                     const std::shared_ptr<Aborts>& aborts) {
  if (size < 1 || size > kMaxRanks) {
    throw ConfigError(fmt::format("a communicator of {} ranks; from 1 to {} are possible", size, kMaxRanks));
  }
  const auto memory = std::make_shared<MappedRegion>(-1, control_bytes(size), "the communicator's control block");
  const std::shared_ptr<ControlBlock> control(memory, create_control(memory->data(), size));
  std::vector<std::unique_ptr<Communicator>> communicators;
  for (int r = 0; r < size; ++r) {
    communicators.push_back(
        std::make_unique<RegionCommunicator>(control, r, std::make_unique<ThreadTransport>(), timeout, aborts));
  }
  return communicators;
}

}  // namespace zeropage::comm
