#include "zeropage/engine/imported_checkpoint.h"

#include <fmt/format.h>

#include <cstring>
#include <memory>

#include "zeropage/base/error.h"
#include "zeropage/checkpoint/save.h"
#include "zeropage/comm/thread_communicator.h"
#include "zeropage/engine/checkpoint.h"

namespace zeropage::engine {
namespace {

constexpr std::chrono::seconds kTimeout{60};  // there is no other rank to wait for

using Read = std::function<at::Tensor(const std::string&)>;

at::Tensor checked(const Read& read, const ImportedTensor& tensor, std::int64_t numel) {
  const at::Tensor values = read(tensor.name).contiguous();
  if (values.scalar_type() == tensor.type && values.numel() == numel && values.is_cpu()) return values;
  throw CheckpointError(fmt::format("tensor '{}': expected {} elements of {}, got {} of {}", tensor.name, numel,
                                    c10::toString(tensor.type), values.numel(), c10::toString(values.scalar_type())));
}

/// Keeps the values from the first requested piece to the last, because files are written from start to end.
checkpoint::ReadBytes reader_of_tensor(const Read& read, const ImportedTensor& tensor, std::int64_t numel) {
  const auto held = std::make_shared<at::Tensor>();
  return [&read, &tensor, numel, held](std::int64_t begin, std::byte* out, std::int64_t bytes) {
    if (begin == 0) *held = checked(read, tensor, numel);
    std::memcpy(out, static_cast<const std::byte*>(held->const_data_ptr()) + begin, static_cast<std::size_t>(bytes));
    if (begin + bytes == static_cast<std::int64_t>(held->nbytes())) held->reset();
  };
}

}  // namespace

std::string write_imported_step(const std::string& folder, checkpoint::Manifest manifest,
                                const std::vector<ImportedTensor>& tensors, const Read& read) {
  checkpoint::SaveRequest request;
  request.folder = folder;
  request.manifest = std::move(manifest);
  request.manifest.library_version = ZEROPAGE_VERSION;
  for (const auto& tensor : tensors) {
    const std::int64_t numel = checkpoint::shape_numel(tensor.shape, tensor.name);
    request.tensors.push_back({{tensor.name, type_name(tensor.type, tensor.name), tensor.shape},
                               0,
                               numel,
                               reader_of_tensor(read, tensor, numel)});
  }
  const auto alone = comm::make_thread_communicators(1, kTimeout);
  return checkpoint::save(checkpoint::system_files(), *alone.front(), std::move(request));
}

}  // namespace zeropage::engine
