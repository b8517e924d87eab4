#include "zeropage/engine/model_state.h"

#include <c10/core/GradMode.h>
#include <fmt/format.h>

#include <algorithm>
#include <span>
#include <utility>

#include "zeropage/base/error.h"
#include "zeropage/engine/agreement.h"
#include "zeropage/engine/engine.h"
#include "zeropage/layout/whole_pages.h"
#include "zeropage/paging/fallback.h"

namespace zeropage::engine {
namespace {

std::vector<std::int64_t> contiguous_strides(at::IntArrayRef sizes) {
  std::vector<std::int64_t> strides(sizes.size());
  std::int64_t stride = 1;
  for (std::size_t i = sizes.size(); i-- > 0;) {
    strides[i] = stride;
    stride *= std::max<std::int64_t>(sizes[i], 1);
  }
  return strides;
}

bool has_ended(const paging::PageTable& holder) {
  const auto* pager = dynamic_cast<const paging::Pager*>(&holder);
  return pager != nullptr && pager->engine_has_ended();
}

/// The formula's options for pages that stay fp32 in a 16-bit run.
formula::StateOptions in_fp32(formula::StateOptions options) {
  options.precision = config::Precision::kFp32;
  return options;
}

}  // namespace

ModelState::ModelState(const std::vector<ParameterInput>& inputs, const config::Config& config,
                       std::shared_ptr<comm::Communicator> communicator, c10::Device device,
                       std::shared_ptr<Ledger> ledger)
    : config_(config),
      communicator_(std::move(communicator)),
      device_(device),
      ledger_(std::move(ledger)),
      sharding_(sharding_of_stage(config.zero.stage)),
      compute_dtype_(formula::compute_dtype(config.precision)) {
  c10::AutoGradMode no_grad(false);
  paging::ensure_fallback();
  paging::watch_results(nullptr);  // ends an Init scope: tensors made from here on are no part of a model
  check(inputs);
  remember(inputs);
  auto parameter_specs = specs(inputs);
  layout::LayoutOptions options;
  options.world_size = communicator_->size();
  options.page_numel =
      std::min({page_numel(parameter_specs), config.zero.reduce_bucket_numel, config.zero.allgather_bucket_numel});
  layout_ = own_layout_ = std::make_shared<layout::Layout>(std::move(parameter_specs), options);
  agree_with_peers();
  allocate();
  if (parameter_disk_) parameter_disk_->begin_pass({});
  take_values(0);
  if (!parameter_disk_) return;
  parameter_disk_->end_pass();
  parameter_disk_->commit();
}

std::int64_t ModelState::page_numel(const std::vector<layout::ParameterSpec>& specs) const {
  if (config_.zeropage.page_numel > 0) return config_.zeropage.page_numel;
  std::int64_t total_numel = 0;
  std::int64_t largest_whole_numel = 0;
  for (const auto& spec : specs) {
    total_numel += spec.numel;
    if (spec.whole) largest_whole_numel = std::max(largest_whole_numel, spec.numel);
  }
  const std::int64_t fitted = layout::page_numel_for_whole_parameters(total_numel, largest_whole_numel,
                                                                      communicator_->size(), sharding_.shard_gradients);
  return fitted > 0 ? fitted : layout::default_page_numel(total_numel, /*networked=*/!communicator_->one_sided());
}

void ModelState::remember(const std::vector<ParameterInput>& inputs) {
  for (const auto& input : inputs) {
    tensors_.push_back(input.tensor);
    sizes_.push_back(input.tensor.sizes().vec());
    const bool dense = input.tensor.is_non_overlapping_and_dense();
    strides_.push_back(dense ? input.tensor.strides().vec() : contiguous_strides(input.tensor.sizes()));
  }
}

/// Fills the pages from `first_page` on, one after the other, and moves their parameters into them.
void ModelState::take_values(int first_page) {
  const auto pages = std::span(layout_->pages()).subspan(static_cast<std::size_t>(first_page));
  std::int64_t largest_bytes = 1;
  for (const auto& page : pages) {
    largest_bytes = std::max(largest_bytes, page.padded_numel * std::max<std::int64_t>(page.element_bytes, 4));
  }
  storages_.resize(tensors_.size());
  auto staging = communicator_->allocate(largest_bytes, "initial values");
  for (const auto& page : pages) {
    fill_page(page, staging->data());
    rehome(page);
  }
  mark_writes_as_equal();
}

void ModelState::add(const std::vector<ParameterInput>& inputs) {
  c10::AutoGradMode no_grad(false);
  check(inputs);
  adopt_replaced_data();
  const int first_page = static_cast<int>(layout_->pages().size());
  own_layout_->append(specs(inputs));
  remember(inputs);
  allocate_added(first_page);
  take_values(first_page);
}

void ModelState::check(const std::vector<ParameterInput>& inputs) const {
  if (inputs.empty()) {
    throw ConfigError(
        "the model has no parameters; expected at least one. Was the model built before zeropage was initialized, and "
        "are its submodules registered (nn.ModuleList instead of a plain list)?");
  }
  struct Extent {
    std::pair<const void*, std::int64_t>
        begin;  // storage of a tensor that may be absent (else null), and the offset in it or the address
    std::int64_t end;
    const std::string* name;
  };
  std::vector<Extent> extents;
  for (const auto& input : inputs) {
    const auto& tensor = input.tensor;
    if (tensor.device() != device_) {
      throw ConfigError(
          fmt::format("parameter '{}' is on {}, but this rank trains on {}; move the model there first "
                      "(model.to(\"{}\"); C++: module->to(device)); parameters on the meta device need real values",
                      input.name, tensor.device().str(), device_.str(), device_.str()));
    }
    if (tensor.layout() != c10::kStrided || tensor.is_complex()) {
      throw ConfigError(
          fmt::format("parameter '{}' is {}, which is not supported; make it a dense tensor of real numbers",
                      input.name, tensor.is_complex() ? "complex" : "sparse"));
    }
    const auto* link = paging::link_of(tensor.storage().unsafeGetStorageImpl());
    const auto* holder = link == nullptr ? nullptr : link->handle->pager.load();
    if (holder != nullptr && !link->deferred && !has_ended(*holder)) {
      throw ConfigError(
          fmt::format("parameter '{}' belongs to another zeropage engine already; build the model again, or destroy "
                      "the other engine first",
                      input.name));
    }
    if (tensor.scalar_type() == at::kDouble) {
      throw ConfigError(
          fmt::format("parameter '{}' is float64, which is not supported; call model.float() first (C++: "
                      "module->to(torch::kFloat))",
                      input.name));
    }
    if (tensor.numel() == 0) continue;
    // A tensor of an Init scope or an ended engine may be absent, but does not share its storage.
    const bool elsewhere = holder != nullptr && link->paged;
    const void* home = elsewhere ? tensor.storage().unsafeGetStorageImpl() : nullptr;
    const std::int64_t begin = elsewhere ? tensor.storage_offset() * static_cast<std::int64_t>(tensor.itemsize())
                                         : reinterpret_cast<std::intptr_t>(tensor.const_data_ptr());
    extents.push_back({{home, begin}, begin + static_cast<std::int64_t>(tensor.nbytes()), &input.name});
  }
  std::sort(extents.begin(), extents.end(), [](const auto& a, const auto& b) { return a.begin < b.begin; });
  for (std::size_t i = 1; i < extents.size(); ++i) {
    if (extents[i].begin.first == extents[i - 1].begin.first && extents[i].begin.second < extents[i - 1].end) {
      throw ConfigError(
          fmt::format("parameters '{}' and '{}' are different tensors that share memory; tie weights by using "
                      "the same Parameter object in both places",
                      *extents[i - 1].name, *extents[i].name));
    }
  }
}

std::vector<layout::ParameterSpec> ModelState::specs(const std::vector<ParameterInput>& inputs) const {
  std::vector<layout::ParameterSpec> specs;
  std::int64_t persistent_numel = 0;
  if (layout_) {
    for (const auto& spec : layout_->parameters()) persistent_numel += spec.persistent ? spec.numel : 0;
  }
  for (const auto& input : inputs) {
    layout::ParameterSpec spec;
    spec.name = input.name;
    spec.numel = input.tensor.numel();
    const bool floating = input.tensor.is_floating_point();
    const DType type = input.keep_fp32 ? DType::kFloat32 : compute_dtype_;
    spec.dtype = floating ? type : DType::kOther;
    spec.element_bytes = floating ? element_bytes(type) : static_cast<std::int64_t>(input.tensor.itemsize());
    spec.group = floating ? input.group : -1;
    spec.trainable = spec.group >= 0 && input.tensor.requires_grad();
    spec.whole = input.whole && sharding_.shard_optimizer;
    if (sharding_.shard_parameters && spec.numel <= config_.zero.persistence_threshold_numel &&
        persistent_numel + spec.numel <= config_.zero.model_persistence_threshold_numel) {
      spec.persistent = true;
      persistent_numel += spec.numel;
    }
    specs.push_back(std::move(spec));
  }
  return specs;
}

void ModelState::agree_with_peers() const {
  require_same_everywhere(*communicator_, config_.effective_json + "\n" + layout_->describe());
  warn_of_different_software(*communicator_);
}

formula::ParameterCounts ModelState::counts(bool kept_fp32) const {
  const bool mixed = compute_dtype_ != DType::kFloat32;
  const auto counted = [&](const layout::Page& page) {
    return mixed && page.dtype == DType::kFloat32 ? kept_fp32 : !kept_fp32;
  };
  auto counts = formula::count_parameters(*layout_, offloaded_, /*padded=*/false, counted);
  for (const auto& page : layout_->pages()) {
    if (!pager_->on_disk(page.index) || !counted(page)) continue;
    for (const auto& place : page.placements) counts.disk_numel += place.numel;
  }
  return counts;
}

formula::PlacedBytes ModelState::formula_bytes(const formula::StateOptions& options) const {
  const auto bytes = formula::placed_state_bytes(counts(), options);
  const auto kept = formula::placed_state_bytes(counts(/*kept_fp32=*/true), in_fp32(options));
  return {bytes.device + kept.device, bytes.offloaded + kept.offloaded, bytes.disk + kept.disk};
}

formula::StateBytes ModelState::formula_bytes_on_device(const formula::StateOptions& options) const {
  return formula::model_state_bytes(counts(), options) +
         formula::model_state_bytes(counts(/*kept_fp32=*/true), in_fp32(options));
}

void ModelState::observe(const std::shared_ptr<Timeline>& timeline, io::PageCache* gradients) {
  pager_->observe(timeline);
  state_store_->observe(timeline);
  for (auto* disk : {parameter_disk_.get(), gradients}) {
    if (disk != nullptr) disk->observe(timeline);
  }
}

io::MoverStats ModelState::disk_traffic(const io::PageCache* gradients) const {
  auto traffic = state_store_->traffic();
  if (parameter_disk_) traffic += parameter_disk_->stats();
  if (gradients != nullptr) traffic += gradients->stats();
  return traffic;
}

void ModelState::commit_step() {
  if (!parameter_disk_ && config_.zero.offload.optimizer != config::OffloadDevice::kNvme) return;
  // After this nothing can fail: either all ranks' drives have the state after this step, or all have the state before
  // it.
  communicator_->job().barrier(comm::Tag{"the end of an update"});
  state_store_->commit();
  if (parameter_disk_) parameter_disk_->commit();
}

void ModelState::abandon_step() noexcept {
  try {
    state_store_->abandon();
    if (parameter_disk_) parameter_disk_->abandon();
  } catch (const Error&) {
    // An error of the drive is ignored: its state is not used again, because the engine has ended.
  }
}

bool ModelState::anything_paged() const {
  return std::any_of(layout_->pages().begin(), layout_->pages().end(),
                     [this](const auto& page) { return pager_->paged(page.index); });
}

HeldParameter::HeldParameter(const ModelState& state, int page, Access access, io::Fill fill)
    : in_memory_(state.owned(page).parameter) {
  if (state.pager().on_disk(page)) held_.emplace(*state.parameter_disk(), page, access == Access::kWrite, fill);
}
}  // namespace zeropage::engine
