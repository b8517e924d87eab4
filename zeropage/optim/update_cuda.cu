// Lists of pieces as launches of the kernels in cuda_kernels.h. Compiled without fused multiply-add.
#include "zeropage/optim/update_cuda.h"

#include <compare>
#include <map>
#include <type_traits>

#include "zeropage/base/error.h"
#include "zeropage/optim/cuda_kernels.h"

namespace zeropage::optim {
namespace {

/// Whether the update rounds anything stochastically.
bool is_rounded(const Arrays& arrays) {
  return arrays.master == nullptr || arrays.state_dtype != config::StateDtype::kFloat32;
}

template <typename Rule>
void start(const Launch<Rule>& launch, unsigned blocks, bool rounded, cudaStream_t stream) {
  if (rounded) {
    const bool shares = launch.state_dtype == config::StateDtype::kInt8;
    return start_kernel(update_rounded_kernel<Rule>, blocks, kThreads, shares ? Threads::kMeet : Threads::kApart,
                        launch, stream);
  }
  with_type(launch.gradient_dtype, [&]<typename Gradient>(Gradient) {
    with_type(launch.parameter_dtype, [&]<typename Parameter>(Parameter) {
      start_kernel(update_kernel<Rule, Gradient, Parameter>, blocks, kThreads, Threads::kApart, launch, stream);
    });
  });
}

/// Whether all arrays begin where a thread's elements can be accessed at once.
template <typename Rule>
bool is_aligned(const Piece<Rule>& piece) {
  const auto suits = [](const void* data) { return reinterpret_cast<std::uintptr_t>(data) % 16 == 0; };
  return suits(piece.master) && suits(piece.gradient) && suits(piece.parameter) && suits(piece.states[0].data) &&
         suits(piece.states[1].data);
}

template <typename Rule>
Piece<Rule> piece_of(const Arrays& arrays, std::int64_t numel, const Step& step) {
  Piece<Rule> piece{.master = arrays.master,
                    .gradient = arrays.gradient,
                    .parameter = arrays.parameter,
                    .numel = numel,
                    .rounding_key = step.rounding_key,
                    .index = static_cast<std::uint64_t>(arrays.index + step.rounding_shift),
                    .rule = Rule(step)};
  for (int s = 0; s < Rule::kStates; ++s) {
    const bool wide = arrays.state_dtype == config::StateDtype::kFloat32;
    piece.states[s] = wide ? PackedState{arrays.states[s]} : arrays.packed[s];
  }
  return piece;
}

template <typename Rule>
void start_all(const std::vector<UpdatePiece>& pieces, cudaStream_t stream) {
  const Arrays& types = pieces.front().arrays;  // the same for all pieces, see Alike
  const auto kind = pieces.front().step.kind;
  const bool rounded = is_rounded(types);
  Launch<Rule> launch{.gradient_dtype = types.gradient_dtype,
                      .parameter_dtype = types.parameter_dtype,
                      .state_dtype = types.state_dtype,
                      .squares = {is_sum_of_squares(kind, 0), is_sum_of_squares(kind, 1)}};
  unsigned blocks = 0;
  for (const UpdatePiece& piece : pieces) {
    // A grid is always large enough: 2^31 blocks are at least 2^39 elements, more than any parameter has.
    launch.first_block[launch.count] = blocks;
    launch.pieces[launch.count] = piece_of<Rule>(piece.arrays, piece.numel, piece.step);
    launch.aligned |= static_cast<unsigned>(is_aligned(launch.pieces[launch.count])) << launch.count;
    blocks += static_cast<unsigned>((piece.numel + kBlockNumel - 1) / kBlockNumel);
    if (++launch.count < kPieces && &piece != &pieces.back()) continue;
    if (blocks > 0) start(launch, blocks, rounded, stream);
    blocks = 0;
    launch.count = 0;
    launch.aligned = 0;
  }
}

/// What pieces of one launch have in common. The rule follows from the kind and from how many states it has.
struct Alike {
  config::OptimizerKind kind;
  int states;
  config::StateDtype state_dtype;
  DType gradient_dtype;
  DType parameter_dtype;
  bool has_master;

  auto operator<=>(const Alike&) const = default;
};

Alike alike_of(const UpdatePiece& piece) {
  const Arrays& arrays = piece.arrays;
  const int states = with_rule(piece.step, [](const auto& rule) { return std::decay_t<decltype(rule)>::kStates; });
  return {piece.step.kind,       states,
          arrays.state_dtype,    arrays.gradient_dtype,
          arrays.parameter_dtype, arrays.master != nullptr};
}

}  // namespace

void update_on_cuda(const std::vector<UpdatePiece>& pieces, void* stream) {
  std::map<Alike, std::vector<UpdatePiece>> groups;
  for (const UpdatePiece& piece : pieces) {
    check_one_pass(piece.arrays, piece.step);
    groups[alike_of(piece)].push_back(piece);
  }
  for (const auto& [alike, group] : groups) {
    with_rule(group.front().step, [&](const auto& rule) {
      start_all<std::decay_t<decltype(rule)>>(group, static_cast<cudaStream_t>(stream));
    });
  }
}

}  // namespace zeropage::optim
