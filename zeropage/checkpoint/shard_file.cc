#include "zeropage/checkpoint/shard_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <nlohmann/json.hpp>

#include "zeropage/base/digest.h"
#include "zeropage/base/error.h"
#include "zeropage/checkpoint/untrusted_json.h"

namespace zeropage::checkpoint {
namespace {

using nlohmann::json;

static_assert(std::endian::native == std::endian::little, "the container is little-endian");
constexpr std::int64_t kLengthBytes = 8;
constexpr std::size_t kHeaderAlignment = 64;

std::int64_t local_bytes(const LocalTensor& tensor) {
  return tensor.numel * dtype_bytes(tensor.info.dtype, "tensor '" + tensor.info.name + "'");
}

/// The header, after the 8 bytes of its length, padded so that the data is aligned.
std::string header_of(const std::vector<LocalTensor>& tensors, const std::string& path) {
  json header = {{"__metadata__", {{"format", "pt"}, {"writer", "zeropage " ZEROPAGE_VERSION}}}};
  std::int64_t begin = 0;
  for (const auto& tensor : tensors) {
    const bool whole = tensor.numel == shape_numel(tensor.info.shape, tensor.info.name);
    const std::int64_t end = begin + local_bytes(tensor);
    header[tensor.info.name] = {{"dtype", tensor.info.dtype},
                                {"shape", whole ? tensor.info.shape : std::vector<std::int64_t>{tensor.numel}},
                                {"data_offsets", {begin, end}}};
    begin = end;
  }
  std::string text = header.dump();
  text.append((kHeaderAlignment - (text.size() + kLengthBytes) % kHeaderAlignment) % kHeaderAlignment, ' ');
  if (static_cast<std::int64_t>(text.size()) > kMaxHeaderBytes) {
    throw CheckpointError(fmt::format("{}: a header of {} bytes for {} tensors; at most {} can be read", path,
                                      text.size(), tensors.size(), kMaxHeaderBytes));
  }
  const std::uint64_t length = text.size();
  std::string bytes(kLengthBytes, '\0');
  std::memcpy(bytes.data(), &length, sizeof(length));
  return bytes + text;
}

/// Collects bytes into chunks. Computes the digest of each full chunk and writes it.
class ChunkedWriter {
 public:
  ChunkedWriter(WritableFile& file, std::int64_t chunk_bytes, std::function<void(std::int64_t)> written)
      : file_(file), chunk_(static_cast<std::size_t>(chunk_bytes)), written_(std::move(written)) {}

  void append(std::int64_t bytes, const ReadBytes& read) {
    for (std::int64_t done = 0; done < bytes;) {
      const auto room = static_cast<std::int64_t>(chunk_.size()) - used_;
      const std::int64_t piece = std::min(room, bytes - done);
      read(done, chunk_.data() + used_, piece);
      done += piece;
      used_ += piece;
      if (piece == room) flush();
    }
  }

  void flush() {
    if (used_ == 0) return;
    file_.append(chunk_.data(), used_);
    record_.bytes += used_;
    record_.digests += digest64(chunk_.data(), used_);
    used_ = 0;
    written_(record_.bytes);
  }

  const ShardRecord& record() const { return record_; }

 private:
  WritableFile& file_;
  std::vector<std::byte> chunk_;
  std::function<void(std::int64_t)> written_;
  std::int64_t used_ = 0;
  ShardRecord record_;
};

}  // namespace

ShardRecord write_shard(FileSystem& files, const std::string& path, std::vector<LocalTensor> tensors,
                        std::int64_t chunk_bytes, const Progress& progress) {
  const auto element = [](const LocalTensor& tensor) { return dtype_bytes(tensor.info.dtype, tensor.info.name); };
  std::stable_sort(tensors.begin(), tensors.end(),
                   [&](const auto& a, const auto& b) { return element(a) > element(b); });
  const std::string header = header_of(tensors, path);
  auto total_bytes = static_cast<std::int64_t>(header.size());
  for (const auto& tensor : tensors) total_bytes += local_bytes(tensor);
  const auto file = files.create(path, total_bytes);
  ChunkedWriter writer(*file, chunk_bytes, [&](std::int64_t done_bytes) {
    if (progress) progress(done_bytes, total_bytes);
  });
  writer.append(static_cast<std::int64_t>(header.size()), [&](std::int64_t begin, std::byte* out, std::int64_t bytes) {
    std::memcpy(out, header.data() + begin, static_cast<std::size_t>(bytes));
  });
  for (const auto& tensor : tensors) writer.append(local_bytes(tensor), tensor.read);
  writer.flush();
  file->sync();
  file->close();
  return writer.record();
}

std::map<std::string, StoredTensor> parse_shard_header(std::string_view text, std::int64_t file_bytes,
                                                       const std::string& origin) {
  const json header = parse_untrusted(text, origin);
  if (!header.is_object()) throw CheckpointError(origin + ": the header is no object");
  const std::int64_t data_begin = kLengthBytes + static_cast<std::int64_t>(text.size());
  std::map<std::string, StoredTensor> tensors;
  std::vector<std::pair<std::int64_t, std::int64_t>> extents;
  for (const auto& [name, value] : header.items()) {
    if (name == "__metadata__") continue;
    check_name(name, origin);
    const std::string where = fmt::format("{}, tensor '{}'", origin, name);
    const ObjectReader entry(value, where);
    StoredTensor tensor{{name, entry.string("dtype"), entry.integers("shape")}, 0, 0};
    const auto offsets = entry.integers("data_offsets");
    const std::int64_t bytes =
        shape_numel(tensor.info.shape, where) * dtype_bytes(tensor.info.dtype, where);  // numel * 8 fits
    if (offsets.size() != 2 || offsets[0] > offsets[1] || offsets[1] > file_bytes - data_begin ||
        offsets[1] - offsets[0] != bytes) {
      throw CheckpointError(fmt::format("{}: its place {} does not hold its {} bytes within {} bytes of data", where,
                                        value["data_offsets"].dump(), bytes, file_bytes - data_begin));
    }
    tensor.begin = data_begin + offsets[0];
    tensor.bytes = bytes;
    extents.emplace_back(offsets[0], offsets[1]);
    tensors.emplace(name, std::move(tensor));
  }
  std::sort(extents.begin(), extents.end());
  std::int64_t end = 0;
  for (const auto& [begin, next] : extents) {
    if (begin != end) throw CheckpointError(fmt::format("{}: tensors overlap or have a gap at {}", origin, end));
    end = next;
  }
  if (end != file_bytes - data_begin) {
    throw CheckpointError(
        fmt::format("{}: the tensors end at {} of {} bytes of data", origin, end, file_bytes - data_begin));
  }
  return tensors;
}

ShardReader::ShardReader(FileSystem& files, std::string path, const ShardRecord& record, std::int64_t chunk_bytes)
    : path_(std::move(path)), record_(record), chunk_bytes_(chunk_bytes), file_(files.open(path_)) {
  if (file_->bytes() != record_.bytes) {
    throw CheckpointError(fmt::format("{} has {} bytes; the manifest says {}", path_, file_->bytes(), record_.bytes));
  }
  if (record_.bytes < kLengthBytes) throw CheckpointError(path_ + ": too short for a header");
  std::uint64_t length = 0;
  read(0, reinterpret_cast<std::byte*>(&length), kLengthBytes, "header");
  if (length > static_cast<std::uint64_t>(std::min(kMaxHeaderBytes, record_.bytes - kLengthBytes))) {
    throw CheckpointError(fmt::format("{}: a header of {} bytes in a file of {}", path_, length, record_.bytes));
  }
  std::string text(length, '\0');
  read(kLengthBytes, reinterpret_cast<std::byte*>(text.data()), static_cast<std::int64_t>(length), "header");
  tensors_ = parse_shard_header(text, record_.bytes, path_);
}

void ShardReader::load_chunk(std::int64_t chunk, const std::function<std::string()>& what) {
  if (loaded_ == chunk) return;
  loaded_ = -1;
  const std::int64_t begin = chunk * chunk_bytes_;
  const std::int64_t bytes = std::min(chunk_bytes_, record_.bytes - begin);
  chunk_.resize(static_cast<std::size_t>(bytes));
  file_->read(begin, chunk_.data(), bytes);
  if (record_.digests.compare(static_cast<std::size_t>(chunk) * 16, 16, digest64(chunk_.data(), bytes)) != 0) {
    throw CheckpointError(fmt::format("{} is damaged between offset {} and {}, found when reading {}", path_, begin,
                                      begin + bytes, what()));
  }
  loaded_ = chunk;
}

void ShardReader::read(std::int64_t begin, std::byte* out, std::int64_t bytes, const std::string& what) {
  if (begin < 0 || bytes < 0 || begin > record_.bytes - bytes) {
    throw CheckpointError(fmt::format("{}: {} is at {} with {} bytes, beyond the end", path_, what, begin, bytes));
  }
  while (bytes > 0) {
    const std::int64_t chunk = begin / chunk_bytes_;
    load_chunk(chunk, [&] { return what; });
    const std::int64_t inside = begin - chunk * chunk_bytes_;
    const std::int64_t piece = std::min(bytes, static_cast<std::int64_t>(chunk_.size()) - inside);
    std::memcpy(out, chunk_.data() + inside, static_cast<std::size_t>(piece));
    begin += piece;
    out += piece;
    bytes -= piece;
  }
}

void ShardReader::verify() {
  for (std::int64_t chunk = 0; chunk * chunk_bytes_ < record_.bytes; ++chunk) {
    const std::int64_t begin = chunk * chunk_bytes_;
    load_chunk(chunk, [&] {
      const auto found = std::find_if(tensors_.begin(), tensors_.end(), [&](const auto& item) {
        return item.second.begin < begin + chunk_bytes_ && begin < item.second.begin + item.second.bytes;
      });
      return found == tensors_.end() ? "header" : "tensor '" + found->first + "'";
    });
  }
}

}  // namespace zeropage::checkpoint
