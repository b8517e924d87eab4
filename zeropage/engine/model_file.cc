#include "zeropage/engine/model_file.h"

#include <c10/core/GradMode.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <random>
#include <set>

#include "zeropage/base/error.h"
#include "zeropage/checkpoint/exchange.h"
#include "zeropage/checkpoint/file_system.h"
#include "zeropage/checkpoint/shard_file.h"
#include "zeropage/engine/checkpoint.h"
#include "zeropage/paging/parameter_link.h"

namespace zeropage::engine {
namespace {

constexpr std::int64_t kChunkBytes = std::int64_t{1} << 20;

bool is_parameter(const at::Tensor& tensor) {
  return paging::link_of(tensor.unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl()) != nullptr;
}

/// Gathers the tensors in order; if their values are needed, it provides them from a copy on the host.
class Gatherer {
 public:
  Gatherer(Engine& engine, const NamedTensors& tensors) : engine_(engine), tensors_(tensors) {}

  /// Every rank gathers each tensor once, even after rank 0 has failed to write one.
  void gather_rest() {
    while (next_ < tensors_.size()) gather(/*wanted=*/false);
  }

  void read(std::size_t index, std::int64_t begin, std::byte* out, std::int64_t bytes) {
    while (next_ <= index) gather(/*wanted=*/next_ == index);
    std::memcpy(out, static_cast<const std::byte*>(host_.const_data_ptr()) + begin, static_cast<std::size_t>(bytes));
  }

 private:
  void gather(bool wanted) {
    const auto& tensor = tensors_[next_++].second;
    host_ = at::Tensor();
    std::optional<std::int64_t> ticket;
    if (tensor.numel() > 0 && is_parameter(tensor)) ticket = engine_.gather({tensor});
    if (wanted) {
      engine_.wait_for_device("the copy of a tensor for a file");
      host_ = tensor.detach().cpu().contiguous().clone();
    }
    if (ticket) engine_.release(*ticket);
  }

  Engine& engine_;
  const NamedTensors& tensors_;
  std::size_t next_ = 0;
  at::Tensor host_;
};

void check(const std::string& path, const NamedTensors& tensors) {
  if (!path.ends_with(".safetensors")) {
    throw UsageError(fmt::format(
        "the model is written as safetensors, never as a pickle: expected a name that ends in .safetensors, got {}",
        path));
  }
  std::set<std::string> names;
  for (const auto& [name, tensor] : tensors) {
    if (!names.insert(name).second) throw UsageError(fmt::format("the tensor '{}' occurs twice", name));
  }
}

void write(checkpoint::FileSystem& files, const std::string& path, const NamedTensors& tensors, Gatherer& gatherer) {
  std::vector<checkpoint::LocalTensor> locals;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const auto& [name, tensor] = tensors[i];
    const auto read = [&gatherer, i](std::int64_t begin, std::byte* out, std::int64_t bytes) {
      gatherer.read(i, begin, out, bytes);
    };
    locals.push_back({{name, type_name(tensor.scalar_type(), name), tensor.sizes().vec()}, 0, tensor.numel(), read});
  }
  const std::filesystem::path target(path);
  const auto folder = target.has_parent_path() ? target.parent_path().string() : ".";
  const auto temporary = fmt::format("{}/.{}.{:08x}.tmp", folder, target.filename().string(), std::random_device()());
  files.make_directories(folder);
  try {
    checkpoint::write_shard(files, temporary, std::move(locals), kChunkBytes);
    files.rename(temporary, path);
  } catch (...) {
    if (files.exists(temporary)) files.remove_all(temporary);
    throw;
  }
  files.sync_directory(folder);
}

}  // namespace

void save_model_file(Engine& engine, comm::Communicator& communicator, const std::string& path,
                     const NamedTensors& tensors) {
  c10::AutoGradMode no_grad(false);
  check(path, tensors);
  // The order of the tensors in the file.
  NamedTensors ordered = tensors;
  std::stable_sort(ordered.begin(), ordered.end(),
                   [](const auto& a, const auto& b) { return a.second.element_size() > b.second.element_size(); });
  Gatherer gatherer(engine, ordered);
  comm::Communicator& job = communicator.job();
  checkpoint::run_on_all_ranks(job, fmt::format("{} was not written", path), [&] {
    std::exception_ptr error;
    try {
      if (job.rank() == 0) write(checkpoint::system_files(), path, ordered, gatherer);
    } catch (const PeerError&) {
      throw;
    } catch (const TimeoutError&) {
      throw;
    } catch (const std::exception&) {
      error = std::current_exception();
    }
    gatherer.gather_rest();
    if (error) std::rethrow_exception(error);
    return std::string();
  });
}

}  // namespace zeropage::engine
