// One kernel per optimizer and pair of types; a block updates kBlockNumel elements of one piece. Compiled without fused multiply-add.
#include "zeropage/optim/update_cuda.h"

#include <type_traits>

#include "zeropage/base/error.h"
#include "zeropage/optim/convert.h"
#include "zeropage/optim/cuda_launch.h"
#include "zeropage/optim/elements.h"

namespace zeropage::optim {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kBlockNumel = 8 * kThreads;
constexpr int kPieces = 32;  // kernels take at most 4 KB of arguments

template <typename Rule>
struct Piece {
  float* master;
  float* first;
  float* second;
  const void* gradient;
  void* parameter;
  std::int64_t numel;
  Rule rule;
};

template <typename Rule>
struct Launch {
  Piece<Rule> pieces[kPieces];
  unsigned first_block[kPieces];
  int count;
};
static_assert(sizeof(Launch<AdamRule>) <= 4096);

struct Float32 {
  static __device__ float load(const void* data, std::int64_t i) { return static_cast<const float*>(data)[i]; }
  static __device__ void store(float, void*, std::int64_t) {}  // the master is the parameter
};

struct BFloat16 {
  static __device__ float load(const void* data, std::int64_t i) {
    return float_from_bfloat16(static_cast<const std::uint16_t*>(data)[i]);
  }
  static __device__ void store(float value, void* data, std::int64_t i) {
    static_cast<std::uint16_t*>(data)[i] = bfloat16_from_float(value);
  }
};

struct Float16 {
  static __device__ float load(const void* data, std::int64_t i) {
    return float_from_float16(static_cast<const std::uint16_t*>(data)[i]);
  }
  static __device__ void store(float value, void* data, std::int64_t i) {
    static_cast<std::uint16_t*>(data)[i] = float16_from_float(value);
  }
};

template <typename Rule, typename Gradient, typename Parameter>
__global__ void __launch_bounds__(kThreads) update_kernel(const __grid_constant__ Launch<Rule> launch) {
  int index = 0;
  while (index + 1 < launch.count && blockIdx.x >= launch.first_block[index + 1]) ++index;
  const Piece<Rule>& piece = launch.pieces[index];
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.x - launch.first_block[index]) * kBlockNumel;
  const std::int64_t end = piece.numel < begin + kBlockNumel ? piece.numel : begin + kBlockNumel;
  for (std::int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
    float none = 0.0F;
    float first = Rule::kStates > 0 ? piece.first[i] : none;
    float second = Rule::kStates > 1 ? piece.second[i] : none;
    const float gradient = Gradient::load(piece.gradient, i) * piece.rule.gradient_scale;
    const float updated = update_element(piece.rule, piece.master[i], first, second, gradient);
    piece.master[i] = updated;
    if constexpr (Rule::kStates > 0) piece.first[i] = first;
    if constexpr (Rule::kStates > 1) piece.second[i] = second;
    Parameter::store(updated, piece.parameter, i);
  }
}

template <typename Call>
void with_type(DType dtype, Call&& call) {
  if (dtype == DType::kBFloat16) return call(BFloat16());
  if (dtype == DType::kFloat16) return call(Float16());
  call(Float32());
}

template <typename Rule>
void start(const Launch<Rule>& launch, unsigned blocks, const Arrays& types, cudaStream_t stream) {
  with_type(types.gradient_dtype, [&]<typename Gradient>(Gradient) {
    with_type(types.parameter_dtype, [&]<typename Parameter>(Parameter) {
      start_kernel(update_kernel<Rule, Gradient, Parameter>, blocks, kThreads, launch, stream);
    });
  });
}

template <typename Rule>
void start_all(const std::vector<UpdatePiece>& pieces, cudaStream_t stream) {
  Launch<Rule> launch;
  unsigned blocks = 0;
  launch.count = 0;
  for (const UpdatePiece& piece : pieces) {
    // Pieces so long that a grid would not do are no parameters: 2^31 blocks are 2^42 elements.
    const Arrays& arrays = piece.arrays;
    launch.first_block[launch.count] = blocks;
    launch.pieces[launch.count] = {arrays.master,   arrays.states[0], arrays.states[1], arrays.gradient,
                                   arrays.parameter, piece.numel,      Rule(piece.step)};
    blocks += static_cast<unsigned>((piece.numel + kBlockNumel - 1) / kBlockNumel);
    if (++launch.count < kPieces && &piece != &pieces.back()) continue;
    if (blocks > 0) start(launch, blocks, arrays, stream);
    blocks = 0;
    launch.count = 0;
  }
}

}  // namespace

void update_on_cuda(const std::vector<UpdatePiece>& pieces, void* stream) {
  if (pieces.empty()) return;
  for (const UpdatePiece& piece : pieces) {
    check_one_pass(piece.arrays, piece.step);
    if (piece.arrays.master == nullptr || piece.arrays.state_dtype != config::StateDtype::kFloat32) {
      throw UsageError("optimizer update on a GPU: expected a master and states in fp32");
    }
  }
  with_rule(pieces.front().step, [&](const auto& rule) {
    start_all<std::decay_t<decltype(rule)>>(pieces, static_cast<cudaStream_t>(stream));
  });
}

}  // namespace zeropage::optim
