// The engine's own kernels (zeropage/optim/device_kernels.h) on the simulated device: the file that nvcc compiles,
// emulated on the host, as tasks on streams.
#include "kernels.h"

#include <atomic>
#include <mutex>

#include "machine.h"
#include "zeropage/optim/block_codes_cuda.cu"
#include "zeropage/optim/norm_cuda.cu"
#include "zeropage/optim/update_cuda.cu"

namespace simulated_device {
namespace {

using zeropage::config::StateDtype;
using zeropage::optim::Arrays;
using zeropage::optim::CodedParts;
using zeropage::optim::PackedState;
using zeropage::optim::SquaredPiece;
using zeropage::optim::UpdatePiece;

/// Records a kernel's use of an array, and replaces its address by the private one.
class Translation {
 public:
  explicit Translation(int device) : device_(device) {}

  template <typename Element>
  void array(Element*& data, std::int64_t bytes, bool reads, bool writes) {
    if (data == nullptr || bytes == 0) return;
    const auto size = static_cast<std::size_t>(bytes);
    if (reads) uses_.push_back({data, size, bytes, false});
    if (writes) uses_.push_back({data, size, bytes, true});
    void* inside = Machine::get().inside(data, device_);
    if (inside == nullptr)
      throw std::runtime_error("simulated device: a kernel was given memory that is not its device's");
    data = static_cast<Element*>(inside);
  }

  const std::vector<Use>& uses() const { return uses_; }

 private:
  int device_;
  std::vector<Use> uses_;
};

void translate_states(Arrays& arrays, std::int64_t numel, Translation& translation) {
  if (arrays.state_dtype == StateDtype::kFloat32) {
    for (float*& state : arrays.states) translation.array(state, 4 * numel, true, true);
    return;
  }
  const bool int8 = arrays.state_dtype == StateDtype::kInt8;
  constexpr std::int64_t kBlock = zeropage::optim::kPackedBlockNumel;
  for (PackedState& state : arrays.packed) {
    translation.array(state.data, int8 ? numel : 2 * numel, true, true);
    if (int8) translation.array(state.exponents, (numel + kBlock - 1) / kBlock, true, true);
  }
}

std::atomic<std::int64_t> launched_updates = 0;

/// Emulated blocks share the memory of their warps' comparisons with blocks of other streams.
std::mutex one_kernel;

void update(const std::vector<UpdatePiece>& pieces, void* native_stream) {
  auto& stream = *static_cast<Stream*>(native_stream);
  Translation translation(stream.device);
  auto translated = pieces;
  for (auto& piece : translated) {
    auto& arrays = piece.arrays;
    zeropage::optim::check_one_pass(arrays, piece.step);
    const bool has_masters = arrays.master != nullptr;
    translation.array(arrays.master, 4 * piece.numel, true, true);
    translation.array(arrays.gradient, zeropage::element_bytes(arrays.gradient_dtype) * piece.numel, true, false);
    if (arrays.parameter_dtype != zeropage::DType::kFloat32) {
      const auto bytes = zeropage::element_bytes(arrays.parameter_dtype) * piece.numel;
      translation.array(arrays.parameter, bytes, !has_masters, true);
    }
    translate_states(arrays, piece.numel, translation);
  }
  Machine::get().launch(stream, "the update kernel", translation.uses(), [translated] {
    const std::lock_guard lock(one_kernel);
    const auto before = zeropage::optim::emulated_launches;
    zeropage::optim::update_on_cuda(translated, nullptr);
    launched_updates += zeropage::optim::emulated_launches - before;
  });
}

void square(const std::vector<SquaredPiece>& pieces, double* lanes, double* blocks, void* native_stream) {
  auto& stream = *static_cast<Stream*>(native_stream);
  Translation translation(stream.device);
  auto translated = pieces;
  std::int64_t count = 0;
  for (auto& piece : translated) {
    translation.array(piece.data, zeropage::element_bytes(piece.dtype) * piece.numel, true, false);
    count += zeropage::optim::square_blocks(piece.numel);
  }
  constexpr auto kBytes = static_cast<std::int64_t>(sizeof(double));
  translation.array(lanes, kBytes * count * zeropage::optim::SquareSum::kLanes, false, true);
  translation.array(blocks, kBytes * count, false, true);
  Machine::get().launch(stream, "the kernel of squares", translation.uses(),
                        [=] { zeropage::optim::square_on_cuda(translated, lanes, blocks, nullptr); });
}

void encode(const CodedParts& parts, const void* values, std::byte* coded, void* native_stream) {
  auto& stream = *static_cast<Stream*>(native_stream);
  Translation translation(stream.device);
  translation.array(values, parts.count * parts.numel * zeropage::element_bytes(parts.dtype), true, false);
  translation.array(coded, parts.total_bytes(), false, true);
  Machine::get().launch(stream, "the kernel that codes values", translation.uses(), [=] {
    const std::lock_guard lock(one_kernel);
    zeropage::optim::encode_on_cuda(parts, values, coded, nullptr);
  });
}

void decode(const CodedParts& parts, const std::byte* coded, void* values, void* native_stream) {
  auto& stream = *static_cast<Stream*>(native_stream);
  Translation translation(stream.device);
  translation.array(coded, parts.total_bytes(), true, false);
  translation.array(values, parts.count * parts.numel * zeropage::element_bytes(parts.dtype), false, true);
  Machine::get().launch(stream, "the kernel that decodes values", translation.uses(),
                        [=] { zeropage::optim::decode_on_cuda(parts, coded, values, nullptr); });
}

}  // namespace

std::int64_t update_launches() { return launched_updates; }

const zeropage::optim::DeviceKernels* kernels() {
  static constexpr zeropage::optim::DeviceKernels kKernels{&update, &square, &encode, &decode};
  return &kKernels;
}

}  // namespace simulated_device
