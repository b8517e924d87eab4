#include "zeropage/checkpoint/model_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>

#include "zeropage/base/error.h"
#include "zeropage/base/log.h"
#include "zeropage/checkpoint/shard_file.h"
#include "zeropage/checkpoint/temporary_folder.h"
#include "zeropage/checkpoint/tensor_info.h"
#include "zeropage/checkpoint/untrusted_json.h"
#include "zeropage/optim/convert.h"

namespace zeropage::checkpoint {
namespace {

using nlohmann::json;

constexpr std::int64_t kFileChunkBytes = std::int64_t{1} << 20;

/// Adds the buffers; check_host has checked their form: {"dict": [[name, {"tensor": record}], ...]}.
void add_buffers(const Checkpoint& step, std::vector<ModelTensor>& out) {
  const json host = parse_untrusted(step.manifest().host_json, step.path());
  if (!host.contains("buffers") || host["buffers"].is_null()) return;
  for (const json& pair : host["buffers"]["dict"]) {
    const auto& info = step.find(pair[1]["tensor"].get<std::string>())->info;
    out.push_back({pair[0].get<std::string>(), {}, info.shape, {}, info.name, info.name, false});
  }
}

/// Converts a tensor whose dimensions are stored in `order` to row-major order.
std::vector<std::byte> in_row_major(const ModelTensor& tensor, const std::vector<std::byte>& stored,
                                    std::int64_t element) {
  const std::size_t dims = tensor.shape.size();
  std::vector<std::int64_t> strides(dims), index(dims, 0);
  std::int64_t stride = element;
  for (std::size_t place = dims; place-- > 0;) {
    const auto dim = static_cast<std::size_t>(tensor.order[place]);
    strides[dim] = stride;
    stride *= tensor.shape[dim];
  }
  std::vector<std::byte> out(stored.size());
  std::int64_t from = 0;
  for (std::size_t to = 0; to < out.size(); to += static_cast<std::size_t>(element)) {
    std::memcpy(out.data() + to, stored.data() + from, static_cast<std::size_t>(element));
    for (std::size_t dim = dims; dim-- > 0;) {
      from += strides[dim];
      if (++index[dim] < tensor.shape[dim]) break;
      from -= strides[dim] * tensor.shape[dim];
      index[dim] = 0;
    }
  }
  return out;
}

/// Reads a tensor of a checkpoint piece by piece, converted to another type if requested.
class Source {
 public:
  Source(Checkpoint& step, ModelTensor tensor, const TensorRecord& record, const std::string& dtype)
      : step_(step), tensor_(std::move(tensor)), record_(record), to_(dtype) {
    from_bytes_ = dtype_bytes(record.info.dtype, step.path());
    to_bytes_ = dtype_bytes(dtype, step.path());
  }

  /// As ReadBytes. Pieces are whole elements, because files order tensors by element size.
  void read(std::int64_t begin, std::byte* out, std::int64_t bytes) {
    const std::int64_t offset = begin / to_bytes_, numel = bytes / to_bytes_;
    if (to_ == record_.info.dtype) return read_stored(offset, numel, out);
    raw_.resize(static_cast<std::size_t>(numel * from_bytes_));
    values_.resize(static_cast<std::size_t>(numel));
    result_.resize(static_cast<std::size_t>(numel));
    read_stored(offset, numel, raw_.data());
    optim::to_float32(raw_.data(), *float_type(record_.info.dtype), values_.data(), numel);
    optim::from_float32(values_.data(), result_.data(), *float_type(to_), numel);
    std::memcpy(out, result_.data(), static_cast<std::size_t>(bytes));
  }

 private:
  void read_stored(std::int64_t offset, std::int64_t numel, std::byte* out) {
    if (tensor_.order.empty()) return step_.read(record_, offset, numel, out);
    const std::int64_t all = shape_numel(tensor_.shape, tensor_.name);
    if (whole_.empty()) {
      std::vector<std::byte> stored(static_cast<std::size_t>(all * from_bytes_));
      step_.read(record_, 0, all, stored.data());
      whole_ = in_row_major(tensor_, stored, from_bytes_);
    }
    std::memcpy(out, whole_.data() + offset * from_bytes_, static_cast<std::size_t>(numel * from_bytes_));
    if (offset + numel == all) std::vector<std::byte>().swap(whole_);
  }

  Checkpoint& step_;
  ModelTensor tensor_;
  const TensorRecord& record_;
  std::string to_;
  std::int64_t from_bytes_ = 0, to_bytes_ = 0;
  std::vector<std::byte> raw_, whole_;
  std::vector<float> values_;
  std::vector<float> result_;  // large enough and aligned for all types
};

std::int64_t bytes_of(const LocalTensor& tensor) { return tensor.numel * dtype_bytes(tensor.info.dtype, ""); }

std::vector<LocalTensor> tensors_to_write(Checkpoint& step, const ExportOptions& options) {
  std::vector<LocalTensor> out;
  for (auto& tensor : model_tensors(step)) {
    if (options.exclude_frozen && !tensor.trainable && tensor.stored.starts_with("value/")) continue;
    const auto* compute = step.find(tensor.compute);
    const auto& record = compute->info.dtype == options.dtype ? *compute : *step.find(tensor.stored);
    const bool converts = float_type(record.info.dtype).has_value();
    TensorInfo info{tensor.name, converts ? options.dtype : record.info.dtype, tensor.shape};
    const std::int64_t numel = shape_numel(tensor.shape, tensor.name);
    auto source = std::make_shared<Source>(step, std::move(tensor), record, info.dtype);
    out.push_back({std::move(info), 0, numel, [source](std::int64_t begin, std::byte* to, std::int64_t bytes) {
                     source->read(begin, to, bytes);
                   }});
  }
  return out;
}

/// Tensors by file, in order.
std::vector<std::vector<LocalTensor>> split(std::vector<LocalTensor> tensors, std::int64_t max_bytes) {
  std::vector<std::vector<LocalTensor>> parts(1);
  std::int64_t used = 0;
  for (auto& tensor : tensors) {
    if (!parts.back().empty() && used + bytes_of(tensor) > max_bytes) {
      parts.emplace_back();
      used = 0;
    }
    used += bytes_of(tensor);
    parts.back().push_back(std::move(tensor));
  }
  return parts;
}

std::string index_of(const std::vector<std::vector<LocalTensor>>& parts, const std::vector<std::string>& names) {
  json places = json::object();
  std::int64_t total = 0;
  for (std::size_t part = 0; part < parts.size(); ++part) {
    for (const auto& tensor : parts[part]) {
      places[tensor.info.name] = names[part];
      total += bytes_of(tensor);
    }
  }
  return json{{"metadata", {{"total_size", total}}}, {"weight_map", std::move(places)}}.dump(2) + "\n";
}

/// Removes the files of a failed export.
class MadeFiles {
 public:
  explicit MadeFiles(FileSystem& files) : files_(files) {}
  ~MadeFiles() {
    for (const auto& path : paths_) {
      try {
        files_.remove_all(path);
      } catch (const Error& error) {
        log_warn(fmt::format("an incomplete file was not removed: {}", error.what()));
      }
    }
  }
  MadeFiles(const MadeFiles&) = delete;
  MadeFiles& operator=(const MadeFiles&) = delete;
  void add(const std::string& path) { paths_.push_back(path); }
  std::vector<std::string> keep() { return std::exchange(paths_, {}); }

 private:
  FileSystem& files_;
  std::vector<std::string> paths_;
};

}  // namespace

std::vector<ModelTensor> model_tensors(const Checkpoint& step) {
  std::vector<ModelTensor> out;
  for (const auto& parameter : step.manifest().parameters) {
    const auto* value = step.find("value/" + parameter.name);
    if (value == nullptr) continue;
    ModelTensor tensor{parameter.name,   parameter.aliases, value->info.shape,  parameter.order,
                       value->info.name, value->info.name,  parameter.trainable};
    if (!tensor.order.empty()) {
      if (tensor.order.size() != tensor.shape.size()) {
        throw CheckpointError(fmt::format("{}: parameter '{}' has {} dimensions and an order of {}", step.path(),
                                          tensor.name, tensor.shape.size(), tensor.order.size()));
      }
      for (std::size_t place = 0; place < tensor.order.size(); ++place) {
        tensor.shape[static_cast<std::size_t>(tensor.order[place])] = value->info.shape[place];
      }
    }
    const auto* master = step.find("master/" + parameter.name);
    if (master != nullptr && master->info.shape == value->info.shape) tensor.stored = master->info.name;
    out.push_back(std::move(tensor));
  }
  add_buffers(step, out);
  return out;
}

std::vector<std::string> export_model(FileSystem& files, Checkpoint& step, const ExportOptions& options) {
  if (!float_type(options.dtype)) {
    throw ConfigError(fmt::format("expected F32, BF16 or F16 as the type to export, got '{}'", options.dtype));
  }
  const auto parts = split(tensors_to_write(step, options), options.max_file_bytes);
  std::vector<std::string> names;
  for (std::size_t part = 1; part <= parts.size(); ++part) {
    names.push_back(parts.size() == 1 ? "model.safetensors"
                                      : fmt::format("model-{:05}-of-{:05}.safetensors", part, parts.size()));
  }
  files.make_directories(options.folder);
  remove_leftovers(files, options.folder);
  for (const auto& name : files.list(options.folder)) {
    if (name != kModelIndexName && !(name.starts_with("model") && name.ends_with(".safetensors"))) continue;
    throw IoError(fmt::format("{}/{} exists already: name another folder, or remove it first", options.folder, name));
  }
  const TemporaryFolder temporary(files, options.folder, "export");
  for (std::size_t part = 0; part < parts.size(); ++part) {
    write_shard(files, fmt::format("{}/{}", temporary.path(), names[part]), parts[part], kFileChunkBytes);
  }
  if (parts.size() > 1) {
    names.emplace_back(kModelIndexName);
    write_text(files, fmt::format("{}/{}", temporary.path(), kModelIndexName), index_of(parts, names));
  }
  MadeFiles made(files);
  for (const auto& name : names) {
    const std::string path = fmt::format("{}/{}", options.folder, name);
    files.rename(fmt::format("{}/{}", temporary.path(), name), path);
    made.add(path);
  }
  files.sync_directory(options.folder);
  return made.keep();
}

}  // namespace zeropage::checkpoint
