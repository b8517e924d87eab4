/// \file
/// The data of examples/text_data.py: the sources of Python's standard library, as bytes, in the order in which the
/// Python package's loader passes them to a rank.
#pragma once

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

/// The folder of Python's standard library.
inline std::string library_folder() {
  std::string folder;
  FILE* python = ::popen("python3 -c 'import sysconfig; print(sysconfig.get_path(\"stdlib\"), end=\"\")'", "r");
  if (python == nullptr) return folder;
  char buffer[4096];
  folder.assign(buffer, std::fread(buffer, 1, sizeof(buffer), python));
  ::pclose(python);
  return folder;
}

/// Item i: bytes [i * context, (i + 1) * context] of the text, int64 [context + 1].
class LibraryText {
 public:
  LibraryText(const std::string& folder, std::int64_t context) : context_(context) {
    std::vector<std::filesystem::path> sources;
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
      if (entry.path().extension() == ".py") sources.push_back(entry.path());
    }
    std::sort(sources.begin(), sources.end());
    for (const auto& path : sources) {
      std::ifstream file(path, std::ios::binary);
      text_.append(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
    }
    if (size() < 1) throw std::runtime_error("no Python sources in \"" + folder + "\"; name their folder: --text DIR");
  }
  std::int64_t size() const { return (static_cast<std::int64_t>(text_.size()) - 1) / context_; }
  std::int64_t context() const { return context_; }
  const char* item(std::int64_t index) const { return text_.data() + index * context_; }

 private:
  std::string text_;
  std::int64_t context_;
};

/// A random order of all items, the same on all ranks and new in each epoch; this rank gets every size-th item.
class RankBatches {
 public:
  RankBatches(const LibraryText& text, std::int64_t batch_size, int rank, int size)
      : text_(text), batch_size_(batch_size), rank_(rank), size_(size) {}

  /// int64 [batch, context + 1]; the last batch of an epoch may be smaller.
  at::Tensor next() {
    if (position_ == mine_.size()) start_epoch();
    const auto count = std::min<std::int64_t>(batch_size_, static_cast<std::int64_t>(mine_.size() - position_));
    at::Tensor batch = at::empty({count, text_.context() + 1}, at::kLong);
    auto* out = batch.data_ptr<std::int64_t>();
    for (std::int64_t i = 0; i < count; ++i) {
      const char* item = text_.item(mine_[position_++]);
      for (std::int64_t t = 0; t <= text_.context(); ++t) *out++ = static_cast<unsigned char>(item[t]);
    }
    return batch;
  }

 private:
  void start_epoch() {
    auto generator = at::make_generator<at::CPUGeneratorImpl>(epoch_++);
    const at::Tensor order = at::randperm(text_.size(), generator, at::kLong);
    const std::int64_t per_rank = (text_.size() + size_ - 1) / size_;
    mine_.clear();
    for (std::int64_t i = 0; i < per_rank; ++i) {
      mine_.push_back(order.data_ptr<std::int64_t>()[(i * size_ + rank_) % text_.size()]);
    }
    position_ = 0;
  }

  const LibraryText& text_;
  std::int64_t batch_size_;
  int rank_, size_;
  std::uint64_t epoch_ = 0;
  std::vector<std::int64_t> mine_;
  std::size_t position_ = 0;
};
