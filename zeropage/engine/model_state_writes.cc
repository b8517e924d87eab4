// Users' writes into parameters, and their replacements of parameters, between two updates.
#include <ATen/ops/where.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <utility>

#include "zeropage/base/digest.h"
#include "zeropage/base/error.h"
#include "zeropage/engine/model_state.h"
#include "zeropage/paging/device_wait.h"
#include "zeropage/paging/exact_read.h"

namespace zeropage::engine {
namespace {

/// Counts the operators that wrote a tensor in place.
std::uint32_t version_of(const at::Tensor& tensor) {
  return tensor.is_inference() ? 0 : tensor.unsafeGetTensorImpl()->version_counter().current_version();
}

}  // namespace

void ModelState::require_types() const {
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    const at::Tensor& tensor = tensors_[i];
    if (!tensor.defined()) continue;  // between drop_tensor and set_tensor
    const DType kept = layout_->pages()[layout_->page_of(static_cast<int>(i))].dtype;
    const auto type = kept == DType::kOther ? tensor.scalar_type() : scalar_type_of(kept);
    if (tensor.scalar_type() == type && tensor.device() == device_) continue;
    throw UsageError(
        fmt::format("parameter '{}' is {} on {} now, as after model.to(...), .double(), .half() or .cpu(), but this "
                    "engine keeps it as {} on {}: such a "
                    "change has no effect once the engine is made. Undo it, and choose types before initialize: by the "
                    "configuration (bf16, fp16), or "
                    "by the model's own",
                    layout_->parameters()[i].name, c10::toString(tensor.scalar_type()), tensor.device().str(),
                    c10::toString(type), device_.str()));
  }
}

void ModelState::adopt_replaced_data() {
  require_types();
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    const int parameter = static_cast<int>(i);
    const int page = layout_->page_of(parameter);
    const at::Tensor& tensor = tensors_[i];
    if (!tensor.defined()) continue;  // between drop_tensor and set_tensor
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
    paging::mark(tensor);  // so that the copy below counts as a write, and faults if needed
    tensor.detach().copy_(replacement);
    if (!needs_mark(page)) paging::unmark(tensor);
  }
}

void ModelState::drop_tensor(int parameter) {
  c10::AutoGradMode no_grad(false);
  adopt_replaced_data();
  at::Tensor& tensor = tensors_[parameter];
  const paging::ExactRead read(tensor);
  tensor.set_data(tensor.detach().clone());
  tensor = at::Tensor();
}

void ModelState::set_tensor(int parameter, const at::Tensor& tensor) {
  tensors_[parameter] = tensor;
  adopt_replaced_data();
}

void ModelState::announce_user_write(int page) {
  if (before_user_write_) before_user_write_(page);
  if (!pager_->paged(page) || communicator_->size() == 1) return;
  for (const auto& place : layout_->pages()[page].placements) {
    digests_before_[place.parameter] = digest_of_frame(place.parameter);
  }
}

std::vector<bool> ModelState::written_pages() const {
  std::vector<bool> written(layout_->pages().size());
  for (std::size_t page = 0; page < written.size(); ++page) written[page] = pager_->is_written(static_cast<int>(page));
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    const int page = layout_->page_of(static_cast<int>(i));
    // The versions of sharded parameters also change when other ranks write; local writes are in frames.
    if (!pager_->paged(page) && version_of(tensors_[i]) != versions_[i]) {
      written[page] = true;
    }
  }
  for (const auto& [parameter, digest] : digests_before_) written[layout_->page_of(parameter)] = true;
  return written;
}

void ModelState::mark_writes_as_equal() {
  digests_before_.clear();
  versions_.resize(tensors_.size());
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    versions_[i] = version_of(tensors_[i]);
  }
}

std::string ModelState::digest_of_frame(int parameter) const {
  const int page = layout_->page_of(parameter);
  const auto& spec = layout_->pages()[page];
  std::byte* start = pager_->paged(page) ? pager_->frame(page) : whole_[page];
  start += layout_->offset_of(parameter) * spec.element_bytes;
  const std::int64_t bytes = layout_->parameters()[parameter].numel * spec.element_bytes;
  if (device_.is_cpu()) return digest64(start, bytes);
  const auto host = paging::to_host(memory::flat_view(start, bytes, at::kByte, device_), *communicator_,
                                    "a parameter that the program may have written");
  return digest64(static_cast<const std::byte*>(host.const_data_ptr()), bytes);
}

std::string ModelState::digest(int parameter) const {
  const int page = layout_->page_of(parameter);
  if (!pager_->paged(page)) return digest_of_frame(parameter);
  if (pager_->is_written(page) && pager_->frame(page) != nullptr) return digest_of_frame(parameter);
  const auto before = digests_before_.find(parameter);
  return before != digests_before_.end() ? before->second : std::string(16, ' ');
}

void ModelState::take_user_writes() {
  for (const int page : pager_->take_written()) {
    announce_user_write(page);
    follow_user_writes(page, owned_[page].parameter);
  }
  pager_->write_back_dirty();
}

void ModelState::follow_user_writes(int page, std::byte* owned) {
  const auto& own = owned_[page];
  const auto& spec = layout_->pages()[page];
  if (!spec.trainable || !has_masters(page)) return;
  HeldState held(*state_store_, page, Access::kWrite);
  if (held.device() != own.device) {
    paging::wait_for_stream(device_, *communicator_, "the copy of written parameters to their masters");
  }
  auto master = memory::flat_view(held.arrays().master, own.numel, at::kFloat, held.device());
  const auto visible = memory::flat_view(owned, own.numel, scalar_type_of(spec.dtype), own.device).to(held.device());
  master.copy_(at::where(visible.eq(master.to(visible.scalar_type())), master, visible.to(at::kFloat)));
}

}  // namespace zeropage::engine
