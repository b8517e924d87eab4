// Tests of the kernels, compiled for the host (cuda_emulation.h): the same file that nvcc compiles.
#include "zeropage/optim/update_cuda.cu"

#include <gtest/gtest.h>

#include <vector>

#include "zeropage/base/error.h"
#include "zeropage/optim/test_state.h"

namespace zeropage::optim {
namespace {

/// The elements of a piece.
struct Range {
  std::int64_t begin;
  std::int64_t numel;
};

/// Ranges of these lengths with different gaps, so that they begin at any element.
std::vector<Range> ranges_of(const std::vector<std::int64_t>& lengths) {
  std::vector<Range> ranges;
  std::int64_t next = 3;
  for (const std::int64_t numel : lengths) {
    ranges.push_back({next, numel});
    next += numel + 1 + static_cast<std::int64_t>(ranges.size()) % 9;
  }
  return ranges;
}

/// The same, but they begin at aligned elements, like a page's parameters: several elements are accessed at once.
std::vector<Range> aligned_ranges_of(const std::vector<std::int64_t>& lengths) {
  std::vector<Range> ranges;
  std::int64_t next = 0;
  for (const std::int64_t numel : lengths) {
    ranges.push_back({next, numel});
    next += (numel / 64 + 1) * 64;
  }
  return ranges;
}

std::int64_t numel_of(const std::vector<Range>& ranges) {
  return ranges.empty() ? 16 : ranges.back().begin + ranges.back().numel + 16;
}

/// A step with the values in which parameters of one group may differ: the number of updates and the keys of rounding.
Step step_of(const Step& step, std::size_t piece) {
  Step own = step;
  own.step += static_cast<std::int64_t>(piece);
  own.params.lr *= 1.0 + 0.1 * static_cast<double>(piece);
  own.gradient_scale /= static_cast<float>(1 + piece % 3);
  return own;
}

/// Updates the ranges with the kernels and with the scalar reference. Elements between them must not change.
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

// Would catch a kernel that differs from the scalar reference in one bit, leaves elements of a block out, updates
// neighbours, or mixes up two pieces' arrays or hyperparameters.
TEST(UpdateOnCuda, EqualsTheScalarTwinBitForBit) {
  const std::vector<std::int64_t> lengths = {1, 7, 8, 255, 256, 2047, 2048, 2049, 10000};
  for (const auto& ranges : {ranges_of(lengths), aligned_ranges_of(lengths)}) {
    for (const Step& step : one_pass_steps()) {
      for (DType gradient_dtype : kTestDtypes) {
        for (DType parameter_dtype : kTestDtypes) {
          expect_the_twins_bits(State(numel_of(ranges), gradient_dtype, parameter_dtype, 1), ranges, step);
        }
      }
    }
  }
}

// Would catch pieces that are updated with the types or the rule of the first one; and separate launches for pieces
// that are alike, at any position.
TEST(UpdateOnCuda, TakesPiecesOfDifferentTypesTogether) {
  const auto ranges = ranges_of({40, 1, 300, 2049});
  const auto two_rules = [](bool momentum) {
    Step step{config::OptimizerKind::kSgd, {}};
    step.params.momentum = momentum ? 0.9 : 0.0;
    return step;
  };
  std::vector<State> states;
  std::vector<State> twins;
  for (DType gradient_dtype : kTestDtypes) {
    for (DType parameter_dtype : kTestDtypes) states.emplace_back(numel_of(ranges), gradient_dtype, parameter_dtype, 5);
  }
  twins = states;
  std::vector<UpdatePiece> pieces;
  for (std::size_t i = 0; i < ranges.size(); ++i) {
    for (std::size_t s = 0; s < states.size(); ++s) {
      const Step step = step_of(two_rules(/*momentum=*/s % 2 == 0), i);
      pieces.push_back({states[s].arrays(ranges[i].begin), ranges[i].numel, step});
      update_reference(twins[s].arrays(ranges[i].begin), ranges[i].numel, step);
    }
  }
  const auto before = emulated_launches;
  update_on_cuda(pieces, nullptr);
  EXPECT_EQ(emulated_launches - before, 9);
  EXPECT_TRUE(states == twins);
}

// Would catch a piece that is dropped or updated twice at the end of a launch, which takes 32 pieces; and empty pieces,
// which have no block.
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

/// The types in which an update stores parameters and states.
struct Kept {
  config::StateDtype states;
  bool masters;
  DType gradient_dtype;
  DType parameter_dtype;
};

/// The memory of an update with stochastic rounding.
struct RoundedState {
  State wide;
  Kept kept;
  std::vector<Packed> packed;

  RoundedState(const std::vector<Range>& ranges, const Kept& kept, const Step& step)
      : wide(numel_of(ranges), kept.gradient_dtype, kept.parameter_dtype, 4), kept(kept) {
    from_float32(wide.master.data(), wide.parameter.data(), kept.parameter_dtype, numel_of(ranges));
    if (kept.states == config::StateDtype::kFloat32) return;
    for (int s = 0; s < config::optimizer_state_count({step.kind, step.params}); ++s) {
      packed.emplace_back(numel_of(ranges), kept.states, is_sum_of_squares(step.kind, s), ranges.size() + 1);
    }
    for (std::size_t i = 0; i < ranges.size(); ++i) {
      for (std::size_t s = 0; s < packed.size(); ++s) {
        const float* values = (s == 0 ? wide.first : wide.second).data() + ranges[i].begin;
        pack(values, arrays(ranges, i).packed[s], kept.states, packed[s].squares, ranges[i].numel, s, 0);
      }
    }
  }

  /// The blocks of a range begin with the range, as in the engine.
  Arrays arrays(const std::vector<Range>& ranges, std::size_t i) {
    Arrays all = wide.arrays();
    all.state_dtype = kept.states;
    for (std::size_t s = 0; s < packed.size(); ++s) all.packed[s] = packed[s].state();
    if (kept.states != config::StateDtype::kFloat32) all.states = {};
    if (!kept.masters) all.master = nullptr;
    const std::int64_t begin = ranges[i].begin;
    return all.from_block(begin, begin / kPackedBlockNumel + static_cast<std::int64_t>(i));
  }

  bool operator==(const RoundedState& other) const { return wide == other.wide && packed == other.packed; }
};

void expect_the_twins_rounding(const std::vector<Range>& ranges, const Kept& kept, const Step& step) {
  const RoundedState initial(ranges, kept, step);
  RoundedState kernels = initial, twin = initial;
  std::vector<UpdatePiece> pieces;
  for (std::size_t i = 0; i < ranges.size(); ++i) {
    Step own = step_of(step, i);
    own.rounding_key = (i + 1) << 32 | static_cast<std::uint64_t>(own.step);
    // Every third begins shortly before an index of the parameter has more than 32 bits.
    own.rounding_shift = (i % 3 == 0 ? (std::int64_t{1} << 32) - 100 : 17) - ranges[i].begin;
    pieces.push_back({kernels.arrays(ranges, i), ranges[i].numel, own});
    update_reference(twin.arrays(ranges, i), ranges[i].numel, own);
  }
  update_on_cuda(pieces, nullptr);
  EXPECT_TRUE(kernels == twin) << static_cast<int>(step.kind) << ", states " << static_cast<int>(kept.states)
                               << (kept.masters ? "" : " without masters") << dtype_name(kept.gradient_dtype)
                               << dtype_name(kept.parameter_dtype) << ", " << ranges.size() << " pieces";
  EXPECT_FALSE(kernels == initial);
}

/// Types of gradients and parameters with which an engine keeps masters, or does not.
std::vector<Kept> all_kept(config::StateDtype states) {
  std::vector<Kept> all;
  for (DType gradient_dtype : kTestDtypes) {
    for (DType parameter_dtype : kTestDtypes) {
      if (states != config::StateDtype::kFloat32) all.push_back({states, true, gradient_dtype, parameter_dtype});
      if (parameter_dtype != DType::kFloat32) all.push_back({states, false, gradient_dtype, parameter_dtype});
    }
  }
  return all;
}

// Would catch a kernel that rounds differently from the host: with other random bits, another exponent of a block, or
// in another order.
TEST(UpdateOnCuda, RoundsAtRandomAsTheScalarTwin) {
  const std::vector<std::int64_t> lengths = {1, 255, 256, 257, 2049};
  for (const auto& ranges : {ranges_of(lengths), aligned_ranges_of(lengths)}) {
    for (const Step& step : one_pass_steps()) {
      for (const auto states : {config::StateDtype::kFloat32, config::StateDtype::kBFloat16}) {
        for (const Kept& kept : all_kept(states)) expect_the_twins_rounding(ranges, kept, step);
      }
    }
  }
}

// The same for blocks of int8, whose threads wait for each other: would catch a thread that reads the exponent of a
// block too early, or the one of a neighbour. The types are those of the test above, one after the other.
TEST(UpdateOnCuda, RoundsBlocksAsTheScalarTwin) {
  const auto types = all_kept(config::StateDtype::kInt8);
  std::size_t next = 0;
  for (const Step& step : one_pass_steps()) {
    expect_the_twins_rounding(ranges_of({1, 255, 256, 257, 600}), types[next++ % types.size()], step);
    expect_the_twins_rounding(aligned_ranges_of({64, 255, 256, 2100}), types[next++ % types.size()], step);
  }
  for (const Kept& kept : types) expect_the_twins_rounding(ranges_of({300}), kept, {});
  for (const std::size_t count : {31, 32, 33}) {
    std::vector<std::int64_t> lengths(count, 10);
    lengths[count / 2] = 0;
    lengths.back() = 300;
    expect_the_twins_rounding(ranges_of(lengths), types.front(), {});
  }
}

// Would catch missing arrays that are not found before a kernel runs.
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
