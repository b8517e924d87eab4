#include "zeropage/checkpoint/diff.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "zeropage/optim/convert.h"

namespace zeropage::checkpoint {
namespace {

constexpr std::int64_t kPieceNumel = std::int64_t{1} << 18;

struct Count {
  std::int64_t different = 0;
  std::int64_t first = -1;
  double largest = 0;  ///< |a - b|; of floats only
};

/// Elements [offset, offset + numel) of two tensors of one type and shape.
void compare(const TensorInfo& info, std::int64_t offset, std::int64_t numel, const std::vector<std::byte>& a,
             const std::vector<std::byte>& b, Count& count) {
  const std::int64_t bytes = dtype_bytes(info.dtype, info.name);
  const auto type = float_type(info.dtype);
  std::vector<float> first, second;
  for (std::int64_t i = 0; i < numel; ++i) {
    if (std::memcmp(a.data() + i * bytes, b.data() + i * bytes, static_cast<std::size_t>(bytes)) == 0) continue;
    if (count.different++ == 0) count.first = offset + i;
    if (!type) continue;
    if (first.empty()) {
      first.resize(static_cast<std::size_t>(numel));
      second.resize(static_cast<std::size_t>(numel));
      optim::to_float32(a.data(), *type, first.data(), numel);
      optim::to_float32(b.data(), *type, second.data(), numel);
    }
    const double difference = std::abs(static_cast<double>(first[i]) - static_cast<double>(second[i]));
    if (!(difference <= count.largest)) count.largest = difference;  // true for NaN, too
  }
}

void compare_tensor(Checkpoint& a, Checkpoint& b, const TensorRecord& one, const TensorRecord& other,
                    std::vector<std::string>& out) {
  const auto& info = one.info;
  if (info != other.info) {
    out.push_back(fmt::format("{}: {} [{}] | {} [{}]", info.name, info.dtype, fmt::join(info.shape, ", "),
                              other.info.dtype, fmt::join(other.info.shape, ", ")));
    return;
  }
  const std::int64_t numel = shape_numel(info.shape, info.name), bytes = dtype_bytes(info.dtype, info.name);
  Count count;
  std::vector<std::byte> first, second;
  for (std::int64_t begin = 0; begin < numel; begin += kPieceNumel) {
    const std::int64_t piece = std::min(kPieceNumel, numel - begin);
    first.resize(static_cast<std::size_t>(piece * bytes));
    second.resize(first.size());
    a.read(one, begin, piece, first.data());
    b.read(other, begin, piece, second.data());
    if (first != second) compare(info, begin, piece, first, second, count);
  }
  if (count.different == 0) return;
  const std::string by = float_type(info.dtype) ? fmt::format(", by up to {:.3g}", count.largest) : "";
  out.push_back(fmt::format("{}: {} of {} elements differ{}, first element {}", info.name, count.different, numel, by,
                            count.first));
}

void compare_training(const TrainingState& a, const TrainingState& b, std::vector<std::string>& out) {
  const auto number = [&](const char* name, std::int64_t first, std::int64_t second) {
    if (first != second) out.push_back(fmt::format("{}: {} | {}", name, first, second));
  };
  number("global_steps", a.global_steps, b.global_steps);
  number("skipped_steps", a.skipped_steps, b.skipped_steps);
  number("micro_steps", a.micro_steps, b.micro_steps);
  if (a.samples && b.samples) number("samples", *a.samples, *b.samples);
  number("schedule_iteration", a.schedule_iteration.value_or(-1), b.schedule_iteration.value_or(-1));
  const auto scale = [](const TrainingState& state) { return state.loss_scale ? state.loss_scale->scale : 1.0; };
  if (scale(a) != scale(b)) out.push_back(fmt::format("loss_scale: {} | {}", scale(a), scale(b)));
}

bool of_the_model(const TensorRecord& tensor) { return !tensor.info.name.starts_with("host/"); }

}  // namespace

std::vector<std::string> differences(Checkpoint& a, Checkpoint& b) {
  std::vector<std::string> out;
  compare_training(a.manifest().training, b.manifest().training, out);
  for (const auto& tensor : a.manifest().tensors) {
    if (!of_the_model(tensor)) continue;
    const auto* other = b.find(tensor.info.name);
    if (other != nullptr) {
      compare_tensor(a, b, tensor, *other, out);
    } else {
      out.push_back(fmt::format("{}: only in {}", tensor.info.name, a.path()));
    }
  }
  for (const auto& tensor : b.manifest().tensors) {
    if (of_the_model(tensor) && a.find(tensor.info.name) == nullptr) {
      out.push_back(fmt::format("{}: only in {}", tensor.info.name, b.path()));
    }
  }
  return out;
}

}  // namespace zeropage::checkpoint
