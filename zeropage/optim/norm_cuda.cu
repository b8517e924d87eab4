// Sums of squares as defined by SquareSum: one thread for each of its partial sums adds the elements in the same order.
#include "zeropage/optim/norm_cuda.h"

#include <string>

#include "zeropage/base/error.h"
#include "zeropage/optim/cuda_launch.h"
#include "zeropage/optim/cuda_values.h"
#include "zeropage/optim/norm.h"

namespace zeropage::optim {
namespace {

constexpr int kSquareLanes = SquareSum::kLanes;
constexpr std::int64_t kSquareBlockNumel = SquareSum::kBlockNumel;
constexpr int kSquareThreads = 128;
constexpr int kSquarePieces = 128;  // kernels take at most 4 KB of arguments
constexpr int kAhead = 32;          // concurrent loads in each thread, so that few threads use the full memory bandwidth

struct Squares {
  const void* data[kSquarePieces] = {};  ///< [numel] each, fp32, bf16 or fp16, all of one type
  std::int64_t numel[kSquarePieces] = {};
  unsigned first_block[kSquarePieces] = {};
  int count = 0;
  unsigned blocks = 0;
  double* lanes = nullptr;  ///< [blocks, kSquareLanes], fp64, from the first piece's first block on
};
static_assert(sizeof(Squares) <= 4096);

struct Folding {
  const double* lanes = nullptr;  ///< [blocks, kSquareLanes], fp64
  double* sums = nullptr;         ///< [blocks], fp64
  std::int64_t blocks = 0;
};

/// The last piece that begins at `block` or before it.
__device__ int piece_at(const Squares& squares, unsigned block) {
  int first = 0;
  int end = squares.count;
  while (end - first > 1) {
    const int middle = (first + end) / 2;
    if (squares.first_block[middle] <= block) {
      first = middle;
    } else {
      end = middle;
    }
  }
  return first;
}

/// A thread sums every kSquareLanes-th square of one block: squares.lanes[block, lane].
template <typename Values>
__global__ void __launch_bounds__(kSquareThreads) lanes_kernel(const __grid_constant__ Squares squares) {
  const unsigned thread = blockIdx.x * kSquareThreads + threadIdx.x;
  const unsigned block = thread / kSquareLanes;
  if (block >= squares.blocks) return;
  const int piece = piece_at(squares, block);
  const void* const data = squares.data[piece];
  const std::int64_t begin = static_cast<std::int64_t>(block - squares.first_block[piece]) * kSquareBlockNumel;
  const std::int64_t end = squares.numel[piece] < begin + kSquareBlockNumel ? squares.numel[piece] : begin + kSquareBlockNumel;
  double sum = 0.0;
  std::int64_t i = begin + thread % kSquareLanes;
  for (; i + (kAhead - 1) * kSquareLanes < end; i += kAhead * kSquareLanes) {
    float values[kAhead];
    for (int k = 0; k < kAhead; ++k) values[k] = Values::load(data, i + k * kSquareLanes);
    for (int k = 0; k < kAhead; ++k) sum += static_cast<double>(values[k]) * static_cast<double>(values[k]);
  }
  for (; i < end; i += kSquareLanes) {
    const double value = Values::load(data, i);
    sum += value * value;
  }
  squares.lanes[thread] = sum;
}

/// A thread adds the lanes of one block: folding.sums[block].
__global__ void __launch_bounds__(kSquareThreads) fold_kernel(const __grid_constant__ Folding folding) {
  const std::int64_t block = static_cast<std::int64_t>(blockIdx.x) * kSquareThreads + threadIdx.x;
  if (block >= folding.blocks) return;
  double sums[kSquareLanes];
  for (int lane = 0; lane < kSquareLanes; ++lane) sums[lane] = folding.lanes[block * kSquareLanes + lane];
  for (int width = kSquareLanes / 2; width > 0; width /= 2) {
    for (int lane = 0; lane < width; ++lane) sums[lane] += sums[lane + width];
  }
  folding.sums[block] = sums[0];
}

unsigned thread_blocks(std::int64_t threads) {
  return static_cast<unsigned>((threads + kSquareThreads - 1) / kSquareThreads);
}

void start(const Squares& squares, DType dtype, cudaStream_t stream) {
  with_type(dtype, [&]<typename Values>(Values) {
    start_kernel(lanes_kernel<Values>, thread_blocks(static_cast<std::int64_t>(squares.blocks) * kSquareLanes), kSquareThreads,
                 Threads::kApart, squares, stream);
  });
}

}  // namespace

void square_on_cuda(const std::vector<SquaredPiece>& pieces, double* lanes, double* blocks, void* stream) {
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  Squares squares{.lanes = lanes};
  DType dtype = DType::kFloat32;
  std::int64_t total = 0;
  const auto flush = [&] {
    if (squares.blocks > 0) start(squares, dtype, cuda_stream);
    squares.count = 0;
    squares.blocks = 0;
    squares.lanes = lanes + total * kSquareLanes;
  };
  for (const SquaredPiece& piece : pieces) {
    if (piece.dtype != DType::kFloat32 && piece.dtype != DType::kBFloat16 && piece.dtype != DType::kFloat16) {
      throw UsageError("squares are summed on a GPU in fp32, bf16 or fp16; got " + std::string(dtype_name(piece.dtype)));
    }
    if (piece.numel == 0) continue;
    if (squares.count == kSquarePieces || piece.dtype != dtype) flush();
    dtype = piece.dtype;
    squares.data[squares.count] = piece.data;
    squares.numel[squares.count] = piece.numel;
    squares.first_block[squares.count++] = squares.blocks;
    squares.blocks += static_cast<unsigned>(square_blocks(piece.numel));
    total += square_blocks(piece.numel);
  }
  flush();
  if (total == 0) return;
  start_kernel(fold_kernel, thread_blocks(total), kSquareThreads, Threads::kApart, Folding{lanes, blocks, total},
               cuda_stream);
}

}  // namespace zeropage::optim
