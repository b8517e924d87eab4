#include "zeropage/engine/disk_state_store.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "zeropage/engine/sharding.h"
#include "zeropage/engine/streamed_state_store.h"

namespace zeropage::engine {
namespace {

std::string name_of(std::string_view what, const layout::Layout& layout, const layout::Page& page) {
  const auto& first = layout.parameters()[page.placements.front().parameter].name;
  const auto& last = layout.parameters()[page.placements.back().parameter].name;
  return fmt::format("{} of page {} ({}{})", what, page.index, first, first == last ? "" : " ... " + last);
}

io::StoreOptions disk_options(const config::Config& config, const std::vector<std::string>& folders,
                              std::int64_t buffers, int rank) {
  auto options = store_options(config, folders, rank);
  options.buffer_count = static_cast<int>(buffers);
  return options;
}

class DiskStateStore final : public OptimizerStateStore {
 public:
  DiskStateStore(const StateShape& shape, io::StoreOptions options, std::vector<io::ExtentSpec> pages,
                 std::unique_ptr<OptimizerStateStore> rest, const std::shared_ptr<Ledger>& ledger)
      : shape_(shape),
        rest_(std::move(rest)),
        cache_("optimizer state", std::move(options), std::move(pages), ledger) {}

  c10::Device device(int page) const override {
    return cache_.has(page) ? c10::Device(c10::kCPU) : rest_->device(page);
  }

  bool is_in_place(int page) const override { return !cache_.has(page) && rest_->is_in_place(page); }

  std::vector<int> begin_pass(std::vector<int> pages) override {
    pages = rest_->begin_pass(std::move(pages));
    std::ranges::sort(pages);
    if (std::exchange(backwards_, !backwards_)) std::ranges::reverse(pages);
    cache_.begin_pass(pages);
    return pages;
  }

  StateArrays acquire(int page) override {
    return cache_.has(page) ? shape_.arrays(page, cache_.acquire(page).data()) : rest_->acquire(page);
  }

  void release(int page, bool changed) override {
    cache_.has(page) ? cache_.release(page, changed) : rest_->release(page, changed);
  }

  void end_pass() override {
    rest_->end_pass();
    cache_.end_pass();
  }

  void commit() override { cache_.commit(); }
  void abandon() override { cache_.abandon(); }
  io::MoverStats traffic() const override { return cache_.stats(); }
  void observe(const std::shared_ptr<Timeline>& timeline) override { cache_.observe(timeline); }
  void add(int page, const PageShape& shape) override { rest_->add(page, shape); }
  void unload() override { rest_->unload(); }
  void reload() override { rest_->reload(); }

 private:
  const StateShape shape_;
  std::unique_ptr<OptimizerStateStore> rest_;
  io::PageCache cache_;
  bool backwards_ = false;
};

}  // namespace

io::StoreOptions store_options(const config::Config& config, std::vector<std::string> folders, int rank) {
  io::StoreOptions options;
  options.folders = std::move(folders);
  options.owner = fmt::format("rank-{}", rank);
  options.block_bytes = config.aio.block_bytes;
  options.queue_depth = static_cast<int>(config.aio.queue_depth);
  options.timeout_ms = config.zeropage.timeout_ms;
  return options;
}

std::unique_ptr<OptimizerStateStore> make_optimizer_state_store(const StateShape& shape, const layout::Layout& layout,
                                                                const config::Config& config,
                                                                const std::shared_ptr<comm::Communicator>& communicator,
                                                                c10::Device device,
                                                                const std::shared_ptr<Ledger>& ledger) {
  const auto& offload = config.zero.offload;
  const auto host = optimizer_host(config, device);
  if (offload.optimizer != config::OffloadDevice::kNvme) {
    auto in_memory = make_memory_state_store(shape, device, host, ledger);
    if (!is_updated_on_device(config, device)) return in_memory;
    return make_streamed_state_store(std::move(in_memory), shape, device, communicator, ledger);
  }
  StateShape rest = shape;
  std::vector<io::ExtentSpec> pages;
  for (const auto& page : layout.pages()) {
    const bool here = shape.offloaded[page.index] && shape.numel[page.index] > 0;
    pages.push_back({name_of("the optimizer state", layout, page), here ? shape.bytes(page.index) : std::int64_t{0}});
    if (here) rest.numel[page.index] = 0;
  }
  auto options = disk_options(config, offload.optimizer_folders, offload.optimizer_buffers, communicator->job().rank());
  return std::make_unique<DiskStateStore>(shape, std::move(options), std::move(pages),
                                          make_memory_state_store(rest, device, host, ledger), ledger);
}

std::shared_ptr<io::PageCache> make_parameter_disk(const layout::Layout& layout, const config::Config& config, int rank,
                                                   const std::shared_ptr<Ledger>& ledger) {
  const auto& offload = config.zero.offload;
  if (offload.parameters != config::OffloadDevice::kNvme) return nullptr;
  std::vector<io::ExtentSpec> pages;
  std::int64_t kept_numel = 0;
  for (const auto& page : layout.pages()) {
    const bool kept = !page.persistent && kept_numel + page.shard_numel <= offload.max_numel_in_cpu;
    if (kept) kept_numel += page.shard_numel;
    pages.push_back({name_of("the parameters", layout, page), kept || page.persistent ? 0 : page.shard_bytes()});
  }
  return std::make_shared<io::PageCache>(
      "parameters", disk_options(config, offload.parameter_folders, offload.parameter_buffers, rank), std::move(pages),
      ledger);
}

std::shared_ptr<io::PageCache> make_gradient_disk(const layout::Layout& layout, const config::Config& config, int rank,
                                                  std::int64_t gradient_bytes, const std::shared_ptr<Ledger>& ledger) {
  const auto& offload = config.zero.offload;
  std::vector<io::ExtentSpec> pages;
  for (const auto& page : layout.pages()) {
    const bool wide = page.dtype == DType::kFloat32 && !config.gradients.accumulation_dtype;
    const std::int64_t bytes = page.trainable ? page.shard_numel * (wide ? 4 : gradient_bytes) : 0;
    pages.push_back({name_of("the gradients", layout, page), bytes, /*two_slots=*/false});
  }
  return std::make_shared<io::PageCache>(
      "gradients", disk_options(config, offload.optimizer_folders, offload.optimizer_buffers, rank), std::move(pages),
      ledger);
}

}  // namespace zeropage::engine
