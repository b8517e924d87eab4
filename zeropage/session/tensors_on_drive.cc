#include "zeropage/session/tensors_on_drive.h"

#include <ATen/ATen.h>

#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

#include "zeropage/engine/disk_state_store.h"

namespace zeropage::session {
namespace {

constexpr const char* kOnDrive =
    "this tensor of the optimizer's state is on a drive (zero_optimization.offload_optimizer): read it with "
    "engine.optimizer.state_dict(), or with safe_get_full_optimizer_state";

std::int64_t bytes_of(const at::Tensor& tensor) { return static_cast<std::int64_t>(tensor.nbytes()); }

/// Whether `tensor` alone has all of its storage, in the memory of the host.
bool is_movable(const at::Tensor& tensor) {
  return tensor.layout() == at::kStrided && tensor.is_cpu() && !tensor.requires_grad() &&
         !tensor.key_set().has(c10::DispatchKey::Python) && tensor.storage().use_count() == 1 &&
         tensor.is_non_overlapping_and_dense() &&
         bytes_of(tensor) == static_cast<std::int64_t>(tensor.storage().nbytes());
}

/// Like `tensor`, without memory: an access raises kOnDrive.
at::Tensor without_memory(const at::Tensor& tensor) {
  c10::Storage storage(c10::Storage::use_byte_size_t(), tensor.nbytes(), at::DataPtr(nullptr, at::kCPU),
                       /*allocator=*/nullptr, /*resizable=*/false);
  const at::Tensor made = at::empty({0}, tensor.options()).set_(storage, 0, tensor.sizes(), tensor.strides());
  storage.unsafeGetStorageImpl()->release_data_and_set_meta_custom_data_ptr_error_msg_(kOnDrive);
  return made;
}

}  // namespace

TensorsOnDrive::TensorsOnDrive(io::StoreOptions options, std::shared_ptr<Ledger> ledger)
    : scratch_(std::move(options)),
      memory_(std::move(ledger), MemoryKind::kBuffers, io::Scratch::kMemoryBytes, Tier::kHost) {}

void TensorsOnDrive::put(const at::Tensor& tensor, const std::string& name) {
  if (bytes_of(tensor) < kSmallestBytes || has(tensor) || !is_movable(tensor)) return;
  drop_freed();
  const auto* const from = static_cast<const std::byte*>(tensor.const_data_ptr());
  auto piece = scratch_.put(name, bytes_of(tensor), [&](std::span<std::byte> to, std::int64_t offset) {
    std::memcpy(to.data(), from + offset, to.size());
  });
  entries_.insert_or_assign(tensor.unsafeGetTensorImpl(),
                            Entry{WeakTensor(tensor.getIntrusivePtr()), std::move(piece)});
  tensor.set_data(without_memory(tensor));
}

at::Tensor TensorsOnDrive::read(const at::Tensor& tensor) {
  if (!has(tensor)) return tensor;
  const at::Tensor made = at::empty_strided(tensor.sizes(), tensor.strides(), tensor.options());
  auto* const to = static_cast<std::byte*>(made.mutable_data_ptr());
  scratch_.get(entries_.at(tensor.unsafeGetTensorImpl()).piece, [&](std::span<std::byte> from, std::int64_t offset) {
    std::memcpy(to + offset, from.data(), from.size());
  });
  return made;
}

void TensorsOnDrive::get(const at::Tensor& tensor) {
  if (!has(tensor)) return;
  tensor.set_data(read(tensor));
  const auto found = entries_.find(tensor.unsafeGetTensorImpl());
  scratch_.drop(found->second.piece);
  entries_.erase(found);
}

bool TensorsOnDrive::has(const at::Tensor& tensor) const {
  return tensor.defined() && entries_.contains(tensor.unsafeGetTensorImpl());
}

/// A weak reference keeps the address of a freed tensor, so that no other tensor gets it.
void TensorsOnDrive::drop_freed() {
  for (auto entry = entries_.begin(); entry != entries_.end();) {
    if (!entry->second.tensor.expired()) {
      ++entry;
      continue;
    }
    scratch_.drop(entry->second.piece);
    entry = entries_.erase(entry);
  }
}

std::shared_ptr<TensorsOnDrive> make_tensors_on_drive(const config::Config& config, int rank,
                                                      std::shared_ptr<Ledger> ledger) {
  const auto& offload = config.zero.offload;
  if (offload.optimizer != config::OffloadDevice::kNvme) return nullptr;
  return std::make_shared<TensorsOnDrive>(engine::store_options(config, offload.optimizer_folders, rank),
                                          std::move(ledger));
}

bool keeps_momenta_in_memory(const config::Config& config) {
  const auto zero = nlohmann::json::parse(config.effective_json).at("zero_optimization");
  return zero.at("save_muon_momentum_buffer_in_memory").get<bool>();
}

}  // namespace zeropage::session
