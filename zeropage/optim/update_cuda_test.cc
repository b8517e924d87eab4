// The kernels themselves, compiled for the host (cuda_emulation.h): the same file that nvcc compiles.
#include "zeropage/optim/update_cuda.cu"

#include <gtest/gtest.h>

#include <vector>

#include "zeropage/base/error.h"
#include "zeropage/optim/test_state.h"

namespace zeropage::optim {
namespace {

constexpr DType kDtypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};

/// Elements that a piece takes.
struct Range {
  std::int64_t begin;
  std::int64_t numel;
};

/// Ranges of these lengths, with gaps of all kinds: they begin anywhere.
std::vector<Range> ranges_of(const std::vector<std::int64_t>& lengths) {
  std::vector<Range> ranges;
  std::int64_t next = 3;
  for (const std::int64_t numel : lengths) {
    ranges.push_back({next, numel});
    next += numel + 1 + static_cast<std::int64_t>(ranges.size()) % 9;
  }
  return ranges;
}

std::int64_t numel_of(const std::vector<Range>& ranges) {
  return ranges.empty() ? 16 : ranges.back().begin + ranges.back().numel + 16;
}

/// What parameters of one group may differ in: how often they were updated. And what no two pieces share here.
Step step_of(const Step& step, std::size_t piece) {
  Step own = step;
  own.step += static_cast<std::int64_t>(piece);
  own.params.lr *= 1.0 + 0.1 * static_cast<double>(piece);
  own.gradient_scale /= static_cast<float>(1 + piece % 3);
  return own;
}

/// Updates the ranges by the kernels and by the scalar twin; what lies between them must stay as it was.
void expect_the_twins_bits(State initial, const std::vector<Range>& ranges, const Step& step) {
  State twin = initial;
  std::vector<UpdatePiece> pieces;
  for (std::size_t i = 0; i < ranges.size(); ++i) {
    pieces.push_back({initial.arrays(ranges[i].begin), ranges[i].numel, step_of(step, i)});
    update_reference(twin.arrays(ranges[i].begin), ranges[i].numel, pieces.back().step);
  }
  update_on_cuda(pieces, nullptr);
  EXPECT_TRUE(initial == twin) << static_cast<int>(step.kind) << dtype_name(initial.gradient_dtype)
                               << dtype_name(initial.parameter_dtype) << ", " << ranges.size() << " pieces";
}

// Would catch a kernel that differs from the scalar twin in one bit, leaves elements of a block out, takes some of its neighbours', or
// mixes up two pieces' arrays or hyperparameters.
TEST(UpdateOnCuda, EqualsTheScalarTwinBitForBit) {
  const auto ranges = ranges_of({1, 255, 256, 2047, 2048, 2049, 10000});
  for (const Step& step : one_pass_steps()) {
    for (DType gradient_dtype : kDtypes) {
      for (DType parameter_dtype : kDtypes) {
        expect_the_twins_bits(State(numel_of(ranges), gradient_dtype, parameter_dtype, 1), ranges, step);
      }
    }
  }
}

// A launch takes 32 pieces. Would catch one that is dropped, or updated twice, where a launch ends; and empty pieces, which have no block.
TEST(UpdateOnCuda, TakesAnyNumberOfPieces) {
  for (const Step& step : one_pass_steps()) {
    for (const std::size_t count : {0, 1, 31, 32, 33, 64, 70}) {
      for (const int empty_every : {1, 2, 3, 100}) {
        std::vector<std::int64_t> lengths(count);
        for (std::size_t i = 0; i < count; ++i) lengths[i] = (i + 1) % empty_every == 0 ? 0 : 1 + 37 * (i % 60);
        const auto ranges = ranges_of(lengths);
        expect_the_twins_bits(State(numel_of(ranges), DType::kBFloat16, DType::kBFloat16, 2), ranges, step);
      }
    }
  }
}

// Would catch arrays that only a kernel would find out not to be there.
TEST(UpdateOnCuda, WrongStepsAndStatesAreErrors) {
  State state(8, DType::kFloat32, DType::kFloat32, 3);
  const auto fails = [&](const Arrays& arrays, const Step& step) {
    EXPECT_THROW(update_on_cuda({{state.arrays(), 8, {}}, {arrays, 8, step}}, nullptr), UsageError);
  };
  const State initial = state;
  Arrays stateless = state.arrays();
  stateless.states = {};
  fails(stateless, {});
  fails(state.arrays(), {.step = 0});
  fails(state.arrays(), {config::OptimizerKind::kLamb, {}});
  EXPECT_TRUE(state == initial);
}

}  // namespace
}  // namespace zeropage::optim
