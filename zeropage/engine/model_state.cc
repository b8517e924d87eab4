#include "zeropage/engine/model_state.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/where.h>
#include <c10/core/GradMode.h>
#include <c10/core/TensorImpl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <utility>

#include "zeropage/base/error.h"
#include "zeropage/engine/agreement.h"
#include "zeropage/engine/disk_home.h"
#include "zeropage/engine/engine.h"
#include "zeropage/paging/fallback.h"
#include "zeropage/plan/model_state.h"

namespace zeropage::engine {
namespace {

DType compute_dtype_of(config::Precision precision) {
  switch (precision) {
    case config::Precision::kBf16: return DType::kBFloat16;
    case config::Precision::kFp16: return DType::kFloat16;
    case config::Precision::kFp32: break;
  }
  return DType::kFloat32;
}

std::string guard_message(const std::string& name) {
  return fmt::format(
      "parameter '{}' is sharded and not resident now, and this code reads it without going through torch's operators "
      "(data_ptr, numpy, torch.save, a compiled kernel). Wrap it in `with zeropage.zero.GatheredParameters([p]):` "
      "(C++: Engine::gather), which makes it resident for the scope.",
      name);
}

std::vector<std::int64_t> contiguous_strides(at::IntArrayRef sizes) {
  std::vector<std::int64_t> strides(sizes.size());
  std::int64_t stride = 1;
  for (std::size_t i = sizes.size(); i-- > 0;) {
    strides[i] = stride;
    stride *= std::max<std::int64_t>(sizes[i], 1);
  }
  return strides;
}

/// A tensor with the storage of a parameter's home; no data is touched, so the home may be absent.
at::Tensor tensor_over(const c10::Storage& storage, at::ScalarType type, c10::Device device, at::IntArrayRef sizes,
                       at::IntArrayRef strides) {
  const auto keys = c10::DispatchKeySet(c10::computeDispatchKey(type, c10::kStrided, device));
  auto tensor = at::detail::make_tensor<c10::TensorImpl>(c10::Storage(storage), keys, c10::scalarTypeToTypeMeta(type));
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(sizes, strides);
  return tensor;
}

}  // namespace

ModelState::ModelState(const std::vector<ParameterInput>& inputs, const config::Config& config,
                       std::shared_ptr<comm::Communicator> communicator, c10::Device device,
                       std::shared_ptr<Ledger> ledger)
    : config_(config),
      communicator_(std::move(communicator)),
      device_(device),
      ledger_(std::move(ledger)),
      placement_(placement_of_stage(config.zero.stage)),
      compute_dtype_(compute_dtype_of(config.precision)) {
  c10::AutoGradMode no_grad(false);
  paging::ensure_fallback();
  paging::watch_results(nullptr);  // what is made from here on is no part of a model: an Init scope ends
  check(inputs);
  for (const auto& input : inputs) {
    tensors_.push_back(input.tensor);
    sizes_.push_back(input.tensor.sizes().vec());
    const bool dense = input.tensor.is_non_overlapping_and_dense();
    strides_.push_back(dense ? input.tensor.strides().vec() : contiguous_strides(input.tensor.sizes()));
  }
  auto parameter_specs = specs(inputs);
  layout::Options options;
  options.world_size = communicator_->size();
  std::int64_t total_numel = 0;
  for (const auto& spec : parameter_specs) total_numel += spec.numel;
  options.page_numel = config.own.page_numel > 0
                           ? config.own.page_numel
                           : layout::default_page_numel(total_numel, /*networked=*/!communicator_->one_sided());
  options.page_numel =
      std::min({options.page_numel, config.zero.reduce_bucket_numel, config.zero.allgather_bucket_numel});
  layout_ = std::make_shared<const layout::Layout>(std::move(parameter_specs), options);
  agree_with_peers();
  allocate();

  std::int64_t largest_bytes = 1;
  for (const auto& page : layout_->pages()) {
    largest_bytes = std::max(largest_bytes, page.padded_numel * std::max<std::int64_t>(page.element_bytes, 4));
  }
  storages_.resize(tensors_.size());
  auto staging = communicator_->allocate(largest_bytes, "initial values");
  if (parameter_disk_) parameter_disk_->begin_pass({});
  for (const auto& page : layout_->pages()) {
    fill_page(page, staging->data());
    rehome(page);
  }
  if (!parameter_disk_) return;
  parameter_disk_->end_pass();
  parameter_disk_->commit();
}

void ModelState::check(const std::vector<ParameterInput>& inputs) const {
  if (inputs.empty()) {
    throw ConfigError(
        "the model has no parameters; expected at least one. Was the model built before zeropage was initialized, and "
        "are its submodules registered (nn.ModuleList instead of a plain list)?");
  }
  struct Extent {
    std::pair<const void*, std::int64_t>
        begin;  // storage of a deferred one (else null), and the place in it or the address
    std::int64_t end;
    const std::string* name;
  };
  std::vector<Extent> extents;
  for (const auto& input : inputs) {
    const auto& tensor = input.tensor;
    if (tensor.device() != device_) {
      throw ConfigError(
          fmt::format("parameter '{}' is on {}, but this rank trains on {}; move the model there first "
                      "(model.to(\"{}\")); parameters on the meta device need real values",
                      input.name, tensor.device().str(), device_.str(), device_.str()));
    }
    if (tensor.layout() != c10::kStrided || tensor.is_complex()) {
      throw ConfigError(
          fmt::format("parameter '{}' is {}, which is not supported; make it a dense tensor of real numbers",
                      input.name, tensor.is_complex() ? "complex" : "sparse"));
    }
    const auto* link = paging::link_of(tensor.storage().unsafeGetStorageImpl());
    const bool deferred = link != nullptr && link->deferred;
    if (link != nullptr && !deferred && link->handle->pager.load() != nullptr) {
      throw ConfigError(
          fmt::format("parameter '{}' belongs to another zeropage engine already; build the model anew, or "
                      "destroy the other engine first",
                      input.name));
    }
    if (tensor.scalar_type() == at::kDouble) {
      throw ConfigError(
          fmt::format("parameter '{}' is float64, which is not supported; call model.float() first", input.name));
    }
    if (tensor.numel() == 0) continue;
    // A deferred one may be absent, but has its storage to itself.
    const void* home = deferred ? tensor.storage().unsafeGetStorageImpl() : nullptr;
    const std::int64_t begin = deferred ? tensor.storage_offset() * static_cast<std::int64_t>(tensor.itemsize())
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
  for (const auto& input : inputs) {
    layout::ParameterSpec spec;
    spec.name = input.name;
    spec.numel = input.tensor.numel();
    const bool floating = input.tensor.is_floating_point();
    spec.dtype = floating ? compute_dtype_ : DType::kOther;
    spec.element_bytes = floating ? element_bytes(compute_dtype_) : static_cast<std::int64_t>(input.tensor.itemsize());
    spec.trainable = floating && input.group >= 0 && input.tensor.requires_grad();
    spec.group = spec.trainable ? input.group : -1;
    if (placement_.shard_parameters && spec.numel <= config_.zero.persistence_threshold_numel &&
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
}

void ModelState::allocate() {
  const auto& pages = layout_->pages();
  paging::PagerOptions options;
  const std::int64_t element = element_bytes(compute_dtype_);
  options.max_live_bytes = config_.zero.max_live_numel * element;
  options.prefetch_bytes = config_.zero.prefetch_bucket_numel * element;
  options.max_reuse_distance_bytes = config_.zero.max_reuse_distance_numel * element;
  options.host = parameter_host(config_, device_);
  std::vector<bool> paged;
  std::int64_t whole_bytes = 0;
  offloaded_ = plan::offloaded_pages(*layout_, plan::offloaded_share(config_));
  StateShape shape;
  shape.offloaded = offloaded_;
  shape.masters = has_masters();
  shape.states = config::optimizer_state_count(config_.optimizer);
  shape.dtype = config_.state_dtype;
  for (std::size_t i = 0; i < shape.squares.size(); ++i) {
    shape.squares[i] = optim::is_sum_of_squares(config_.optimizer.kind, static_cast<int>(i));
  }
  for (const auto& page : pages) {
    // At world size 1 the shard is the page: nothing to gather, unless it lives elsewhere.
    paged.push_back(placement_.shard_parameters && !page.persistent && (communicator_->size() > 1 || options.host));
    if (!paged.back()) whole_bytes += page.padded_bytes();
    const std::int64_t own_numel = placement_.shard_optimizer ? page.shard_numel : page.padded_numel;
    shape.numel.push_back(page.trainable ? own_numel : 0);
    const std::int64_t own_begin = placement_.shard_optimizer ? communicator_->rank() * page.shard_numel : 0;
    const auto pieces =
        static_cast<std::int64_t>(pieces_of(*layout_, page.index, own_begin, own_begin + own_numel).size());
    shape.blocks.push_back(own_numel / optim::kPackedBlockNumel + pieces + 1);
  }
  options.disk = parameter_disk_ = make_parameter_disk(*layout_, config_, communicator_->rank(), ledger_);
  pager_ = std::make_unique<paging::Pager>(layout_, paged, communicator_, device_, ledger_, options);
  pager_->on_write_back([this](int page) { announce_user_write(page); },
                        [this](int page, std::byte* shard) { follow_user_writes(page, shard); });

  home_ = make_state_home(shape, *layout_, config_, communicator_->rank(), device_, ledger_);
  whole_.resize(pages.size(), nullptr);
  owned_.resize(pages.size());
  for (const auto& page : pages) {
    auto& own = owned_[page.index];
    own.begin = placement_.shard_optimizer ? communicator_->rank() * page.shard_numel : 0;
    own.numel = placement_.shard_optimizer ? page.shard_numel : page.padded_numel;
    own.device = paged[page.index] ? pager_->shard_device() : device_;
  }
  allocate_whole(whole_bytes);
}

/// Memory for the pages that are whole, and where every owned range is.
void ModelState::allocate_whole(std::int64_t bytes) {
  whole_memory_ = communicator_->allocate(std::max<std::int64_t>(bytes, 1), "parameters");
  whole_entry_ = LedgerEntry(ledger_, MemoryKind::kParameters, bytes);
  std::byte* whole = whole_memory_->data();
  for (const auto& page : layout_->pages()) {
    auto& own = owned_[page.index];
    if (pager_->paged(page.index)) {
      own.parameter = pager_->shard(page.index);
    } else {
      whole_[page.index] = std::exchange(whole, whole + page.padded_bytes());
      own.parameter = whole_[page.index] + own.begin * page.element_bytes;
    }
  }
}

/// The communicator owns mappings that the memory needs, so both must outlive the parameters.
std::shared_ptr<void> ModelState::whole_owner() const {
  using Kept = std::pair<std::shared_ptr<comm::Communicator>, std::shared_ptr<comm::Memory>>;
  return std::make_shared<Kept>(communicator_, whole_memory_);
}

plan::ParameterCounts ModelState::counts() const {
  auto counts = plan::count_parameters(*layout_, offloaded_, /*padded=*/false);
  for (const auto& page : layout_->pages()) {
    if (!pager_->on_disk(page.index)) continue;
    for (const auto& place : page.placements) counts.disk_numel += place.numel;
  }
  return counts;
}

void ModelState::observe(const std::shared_ptr<Timeline>& timeline, io::PageCache* gradients) {
  pager_->observe(timeline);
  home_->observe(timeline);
  for (auto* disk : {parameter_disk_.get(), gradients}) {
    if (disk != nullptr) disk->observe(timeline);
  }
}

io::MoverStats ModelState::disk_traffic(const io::PageCache* gradients) const {
  auto traffic = home_->traffic();
  if (parameter_disk_) traffic += parameter_disk_->stats();
  if (gradients != nullptr) traffic += gradients->stats();
  return traffic;
}

void ModelState::commit_step() {
  if (!parameter_disk_ && config_.zero.offload.optimizer != config::OffloadDevice::kNvme) return;
  // Beyond this nothing can fail: either all ranks' drives hold the state after this step, or all hold the one before.
  communicator_->barrier(comm::Tag{"the end of an update"});
  home_->commit();
  if (parameter_disk_) parameter_disk_->commit();
}

void ModelState::abandon_step() noexcept {
  try {
    home_->abandon();
    if (parameter_disk_) parameter_disk_->abandon();
  } catch (const Error&) {
    // A drive that does not answer holds nothing that will be used again: the engine has ended.
  }
}

at::Tensor ModelState::place_of(int parameter, void* page_start, at::ScalarType type) const {
  auto* start = static_cast<std::byte*>(page_start) +
                layout_->offset_of(parameter) * static_cast<std::int64_t>(c10::elementSize(type));
  return at::from_blob(start, tensors_[parameter].sizes(), strides_[parameter],
                       at::TensorOptions().dtype(type).device(device_));
}

void ModelState::fill_page(const layout::Page& page, void* staging) {
  const bool floating = page.dtype != DType::kOther;
  const std::int64_t staged_bytes = page.padded_numel * (floating ? 4 : page.element_bytes);
  paging::zero_bytes(staging, staged_bytes, device_);
  for (const auto& place : page.placements) {
    const auto type = floating ? at::kFloat : tensors_[place.parameter].scalar_type();
    place_of(place.parameter, staging, type).copy_(tensors_[place.parameter].detach());
  }
  communicator_->broadcast(staging, staged_bytes, 0, comm::Tag{"initial values", page.index})->wait();

  const auto& own = owned_[page.index];
  const HeldParameter held(*this, page.index, Access::kWrite, io::Fill::kZeros);
  if (!floating) {
    const std::int64_t from = pager_->paged(page.index) ? own.begin * page.element_bytes : 0;
    std::byte* target = pager_->paged(page.index) ? held.data() : whole_[page.index];
    const std::int64_t bytes = pager_->paged(page.index) ? page.shard_bytes() : page.padded_bytes();
    paging::copy_bytes(target, own.device, static_cast<std::byte*>(staging) + from, device_, bytes);
    return;
  }
  auto values = paging::flat_view(staging, page.padded_numel, at::kFloat, device_);
  const auto own_values = values.narrow(0, own.begin, own.numel);
  const auto type = scalar_type_of(page.dtype);
  if (pager_->paged(page.index)) {
    paging::flat_view(held.data(), page.shard_numel, type, own.device)
        .copy_(values.narrow(0, communicator_->rank() * page.shard_numel, page.shard_numel));
  } else {
    paging::flat_view(whole_[page.index], page.padded_numel, type, device_).copy_(values);
  }
  if (page.trainable) fill_state(page, own_values);
}

/// `values` [owned numel, fp32]: what the masters start from.
void ModelState::fill_state(const layout::Page& page, const at::Tensor& values) {
  const double start = config_.optimizer.params.initial_accumulator_value;
  if (!has_masters() && start == 0.0) return;
  HeldState held(*home_, page.index, Access::kWrite);
  const auto view = [&](float* data) { return paging::flat_view(data, values.numel(), at::kFloat, held.device()); };
  if (has_masters()) view(held.arrays().master).copy_(values);
  if (start == 0.0) return;
  if (held.arrays().is_wide(0)) {
    view(held.arrays().states[0]).fill_(start);
    return;
  }
  const auto& own = owned_[page.index];
  for (const auto& piece : pieces_of(*layout_, page.index, own.begin, own.begin + own.numel)) {
    const std::vector<float> values_of_piece(static_cast<std::size_t>(piece.numel), static_cast<float>(start));
    held.write(0, piece, values_of_piece.data(), 0);
  }
}

bool ModelState::anything_paged() const {
  return std::any_of(layout_->pages().begin(), layout_->pages().end(),
                     [this](const auto& page) { return pager_->paged(page.index); });
}

bool ModelState::needs_mark(int page) const {
  // Whole pages in 16 bit are watched for writes only: their fp32 master must follow.
  return pager_->paged(page) || (layout_->pages()[page].trainable && has_masters());
}

void ModelState::rehome(const layout::Page& page) {
  const bool paged = pager_->paged(page.index);
  for (const auto& place : page.placements) {
    const std::int64_t offset_bytes = place.offset * page.element_bytes;
    const std::int64_t bytes = place.numel * page.element_bytes;
    void* data = paged ? nullptr : whole_[page.index] + offset_bytes;
    storages_[place.parameter] = paging::make_linked_storage(
        pager_->make_link(page.index, paged ? nullptr : whole_owner()), data, bytes, device_);
    if (paged) {
      pager_->adopt(page.index, offset_bytes, storages_[place.parameter],
                    guard_message(layout_->parameters()[place.parameter].name));
    }
    tensors_[place.parameter].mutable_grad().reset();
    attach(place.parameter);
  }
}

void ModelState::attach(int parameter) {
  const auto& page = layout_->pages()[layout_->page_of(parameter)];
  at::Tensor& tensor = tensors_[parameter];
  const auto type = page.dtype == DType::kOther ? tensor.scalar_type() : scalar_type_of(page.dtype);
  tensor.set_data(tensor_over(storages_[parameter], type, device_, tensor.sizes(), strides_[parameter]));
  if (needs_mark(page.index)) paging::mark(tensor);
}

void ModelState::absorb_replaced() {
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    const int parameter = static_cast<int>(i);
    const int page = layout_->page_of(parameter);
    const at::Tensor& tensor = tensors_[i];
    const auto& name = layout_->parameters()[i].name;
    c10::StorageImpl* storage = storages_[i].unsafeGetStorageImpl();
    if (tensor.unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl() == storage) {
      if (needs_mark(page) && !paging::is_marked(tensor)) paging::mark(tensor);
      if (paging::link_of(storage) == nullptr) {
        throw UsageError(
            fmt::format("the memory of parameter '{}' was exchanged under the engine; call share_memory() before "
                        "zeropage.initialize, or on a copy of the model",
                        name));
      }
      continue;
    }
    if (tensor.sizes() != at::IntArrayRef(sizes_[i])) {
      throw UsageError(
          fmt::format("parameter '{}' had shape [{}] when the engine was built and was given data of shape [{}]; "
                      "resize parameters before zeropage.initialize",
                      name, fmt::join(sizes_[i], ", "), fmt::join(tensor.sizes(), ", ")));
    }
    c10::AutoGradMode no_grad(false);
    const at::Tensor replacement = tensor.detach();
    attach(parameter);
    paging::mark(tensor);  // so that the copy below is seen as a write, and faults where it must
    tensor.detach().copy_(replacement);
    if (!needs_mark(page)) paging::unmark(tensor);
  }
}

void ModelState::take_user_writes() {
  for (const int page : pager_->take_written()) {
    announce_user_write(page);
    follow_user_writes(page, owned_[page].parameter);
  }
  pager_->write_back_dirty();
}

void ModelState::unload_parameters(paging::MemoryPlace host) {
  pager_->unload(host);
  std::int64_t bytes = 0;
  for (const auto& page : layout_->pages()) {
    if (pager_->paged(page.index)) continue;
    bytes += page.padded_bytes();
    for (const auto& place : page.placements) {
      auto* storage = storages_[place.parameter].unsafeGetStorageImpl();
      paging::release_storage(storage, fmt::format("parameter '{}' was moved to the host by offload_states(); call "
                                                   "reload_states() before it is used",
                                                   layout_->parameters()[place.parameter].name));
      paging::link_of(storage)->memory.reset();
    }
  }
  away_ = std::make_unique<paging::DeviceBuffer>(bytes, host, ledger_, MemoryKind::kParameters);
  paging::copy_bytes(away_->data(), host.device, whole_memory_->data(), device_, bytes);
  whole_memory_.reset();
  whole_entry_ = LedgerEntry();
}

void ModelState::reload_parameters() {
  pager_->reload();
  allocate_whole(away_->bytes());
  paging::copy_bytes(whole_memory_->data(), device_, away_->data(), c10::kCPU, away_->bytes());
  away_.reset();
  for (const auto& page : layout_->pages()) {
    if (pager_->paged(page.index)) continue;
    for (const auto& place : page.placements) {
      auto* storage = storages_[place.parameter].unsafeGetStorageImpl();
      paging::link_of(storage)->memory = whole_owner();
      paging::fill_storage(storage, whole_[page.index] + place.offset * page.element_bytes);
    }
  }
}

void ModelState::follow_user_writes(int page, std::byte* owned) {
  const auto& own = owned_[page];
  const auto& spec = layout_->pages()[page];
  if (!spec.trainable || !has_masters()) return;
  HeldState held(*home_, page, Access::kWrite);
  auto master = paging::flat_view(held.arrays().master, own.numel, at::kFloat, held.device());
  const auto visible = paging::flat_view(owned, own.numel, scalar_type_of(spec.dtype), own.device).to(held.device());
  master.copy_(at::where(visible.eq(master.to(visible.scalar_type())), master, visible.to(at::kFloat)));
}

HeldParameter::HeldParameter(const ModelState& state, int page, Access access, io::Fill fill)
    : in_memory_(state.owned(page).parameter) {
  if (state.pager().on_disk(page)) held_.emplace(*state.parameter_disk(), page, access == Access::kWrite, fill);
}

}  // namespace zeropage::engine
