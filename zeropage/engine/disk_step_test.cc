// A step that the drives have in part when a rank fails: it is undone on all ranks.
#include <gtest/gtest.h>

#include <ATen/ops/ones.h>
#include <unistd.h>

#include <filesystem>
#include <string>

#include "zeropage/base/error.h"
#include "zeropage/comm/testing/test_ranks.h"
#include "zeropage/engine/engine.h"
#include "zeropage/engine/model_state.h"

namespace zeropage::engine {
namespace {

/// A folder that is removed with its object.
class Folder {
 public:
  Folder() {
    if (mkdtemp(path_.data()) == nullptr) throw IoError("mkdtemp");
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  const std::string& path() const { return path_; }

 private:
  std::string path_ = (std::filesystem::temp_directory_path() / "zp-step-XXXXXX").string();
};

config::Config disk_config(const std::string& folder) {
  config::Config config;
  config.zero.stage = 3;
  config.zero.persistence_threshold_numel = 0;
  config.precision = config::Precision::kBf16;
  auto& offload = config.zero.offload;
  offload.optimizer = offload.parameters = config::OffloadDevice::kNvme;
  offload.optimizer_folders = offload.parameter_folders = {folder};
  offload.max_numel_in_cpu = 0;
  config.zeropage.page_numel = 1;
  return config;
}

/// Writes `value` to all state of all pages, as an update does.
void write_all(ModelState& state, float value) {
  std::vector<int> pages;
  for (const auto& page : state.layout()->pages()) pages.push_back(page.index);
  pages = state.state_store().begin_pass(pages);
  state.parameter_disk()->begin_pass(pages);
  for (const int page : pages) {
    const HeldState held(state.state_store(), page, Access::kWrite);
    held.arrays().master[0] = value;
    const HeldParameter parameter(state, page, Access::kWrite);
    parameter.data()[0] = static_cast<std::byte>(value);
  }
  state.state_store().end_pass();
  state.parameter_disk()->end_pass();
}

bool all_is(ModelState& state, float value) {
  bool same = true;
  for (const auto& page : state.layout()->pages()) {
    const HeldState held(state.state_store(), page.index, Access::kRead);
    const HeldParameter parameter(state, page.index, Access::kRead);
    same &= held.arrays().master[0] == value && parameter.data()[0] == static_cast<std::byte>(value);
  }
  return same;
}

// Would catch a rank that activates its part of a step although another rank's part never reached its drive.
TEST(DiskStep, StandsOnAllRanksOrOnNone) {
  const Folder folder;
  const config::Config config = disk_config(folder.path());
  comm::run_threads(2, std::chrono::milliseconds(20000), [&](comm::Communicator& communicator) {
    std::vector<ParameterInput> inputs;
    for (int i = 0; i < 6; ++i) {
      inputs.push_back({"p" + std::to_string(i), at::ones({1000 * (i + 1)}).set_requires_grad(true), 0});
    }
    const std::shared_ptr<comm::Communicator> borrowed(&communicator, [](auto*) {});
    ModelState state(inputs, config, borrowed, c10::kCPU, std::make_shared<Ledger>());
    write_all(state, 7);
    state.commit_step();
    EXPECT_TRUE(all_is(state, 7));
    write_all(state, 8);
    if (communicator.rank() == 1) communicator.abort("rank 1's drive has failed");
    EXPECT_THROW(state.commit_step(), PeerError);
    state.abandon_step();
    EXPECT_TRUE(all_is(state, 7));
    return 0;
  });
}

}  // namespace
}  // namespace zeropage::engine
