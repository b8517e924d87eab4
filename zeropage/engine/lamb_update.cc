#include "zeropage/engine/lamb_update.h"

#include <ATen/Parallel.h>
#include <ATen/ops/stack.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "zeropage/base/checked.h"
#include "zeropage/memory/device_buffer.h"
#include "zeropage/optim/lamb.h"
#include "zeropage/paging/device_wait.h"

namespace zeropage::engine {
namespace {

using optim::LambSums;

constexpr std::int64_t kBlockNumel = 1 << 16;

/// Calls `call(block, begin, numel)` for blocks of fixed length on all of torch's threads.
template <typename Call>
void in_blocks(std::int64_t numel, Call&& call) {
  at::parallel_for(0, ceil_div(numel, kBlockNumel), 1, [&](std::int64_t from, std::int64_t to) {
    for (std::int64_t block = from; block < to; ++block) {
      call(block, block * kBlockNumel, std::min(kBlockNumel, numel - block * kBlockNumel));
    }
  });
}

at::Tensor view_of(float* data, std::int64_t numel, c10::Device device) {
  return memory::flat_view(data, numel, at::kFloat, device);
}

at::Tensor direction_on_device(const optim::Arrays& arrays, std::int64_t numel, const optim::Step& step,
                               c10::Device device) {
  const auto& params = step.params;
  const auto correction = optim::lamb_correction(step);
  const auto second = view_of(arrays.states[1], numel, device).mul(correction.second);
  const auto root = params.eps_inside_sqrt ? second.add_(params.eps).sqrt_() : second.sqrt_().add_(params.eps);
  return view_of(arrays.states[0], numel, device)
      .mul(correction.first)
      .div_(root)
      .add_(view_of(arrays.master, numel, device), params.weight_decay);
}

/// The sums as fp64 [2], on the device.
at::Tensor moments_on_device(const optim::Arrays& arrays, std::int64_t numel, const optim::Step& step,
                             c10::Device device) {
  const auto& params = step.params;
  const auto gradient =
      memory::flat_view(const_cast<void*>(arrays.gradient), numel, scalar_type_of(arrays.gradient_dtype), device)
          .to(at::kFloat)
          .mul(step.gradient_scale);
  view_of(arrays.states[0], numel, device).mul_(params.beta1).add_(gradient, 1.0 - params.beta1);
  view_of(arrays.states[1], numel, device).mul_(params.beta2).addcmul_(gradient, gradient, 1.0 - params.beta2);
  const auto squares = [](const at::Tensor& values) { return values.to(at::kDouble).square_().sum(); };
  return at::stack(
      {squares(view_of(arrays.master, numel, device)), squares(direction_on_device(arrays, numel, step, device))});
}

LambSums moments_on_host(const optim::Arrays& arrays, std::int64_t numel, const optim::Step& step) {
  std::vector<LambSums> parts(static_cast<std::size_t>(ceil_div(numel, kBlockNumel)));
  in_blocks(numel, [&](std::int64_t block, std::int64_t begin, std::int64_t count) {
    parts[static_cast<std::size_t>(block)] = optim::lamb_moments(arrays.from(begin), count, step);
  });
  LambSums sums;
  for (const auto& part : parts) {
    sums.parameter += part.parameter;
    sums.direction += part.direction;
  }
  return sums;
}

/// Sums on a device, all fetched in one copy.
class SumsOnDevice {
 public:
  void add(std::size_t index, const at::Tensor& sums) {
    indices_.push_back(index);
    sums_.push_back(sums);
  }

  void fetch_into(std::vector<LambSums>& sums, comm::Communicator& communicator) const {
    if (sums_.empty()) return;
    const at::Tensor host = paging::fetch(at::stack(sums_), communicator, "the norms of Lamb");
    const auto values = host.accessor<double, 2>();
    for (std::size_t i = 0; i < indices_.size(); ++i) {
      const auto row = values[static_cast<std::int64_t>(i)];
      sums[indices_[i]] = {row[0], row[1]};
    }
  }

 private:
  std::vector<std::size_t> indices_;
  std::vector<at::Tensor> sums_;
};

}  // namespace

std::vector<double> lamb_ratios(UpdatePass& pass, std::vector<int> pages, const UpdateInputs& inputs,
                                comm::Communicator& communicator) {
  c10::AutoGradMode no_grad(false);
  const ModelState& state = pass.state();
  const std::size_t parameters = state.layout()->parameters().size();
  const auto world = static_cast<std::size_t>(communicator.size());
  std::vector<LambSums> sums(world * parameters);  // a row for each rank's shards
  SumsOnDevice on_device;
  bool in_parts = false;
  pages = pass.begin(pages, pages);
  for (const int index : pages) {
    pass.fetch(index);
    const auto& page = state.layout()->pages()[static_cast<std::size_t>(index)];
    const auto& own = state.owned(index);
    in_parts |= own.numel < page.padded_numel;
    const HeldArrays held(pass, index, ParameterUse::kRead);
    for (std::size_t rank = 0; rank < world; ++rank) {
      const std::int64_t shard_begin = static_cast<std::int64_t>(rank) * page.shard_numel;
      if (shard_begin < own.begin || shard_begin >= own.begin + own.numel) continue;
      for (const auto& piece : state.layout()->shard_segments(index, static_cast<int>(rank))) {
        if (!inputs.received[piece.parameter]) continue;
        const std::int64_t offset = piece.page_offset - own.begin;
        auto step = step_of(inputs, page.group, piece.parameter);
        step.rounding_shift = piece.parameter_offset - offset;
        const std::size_t entry = rank * parameters + static_cast<std::size_t>(piece.parameter);
        auto arrays = held.arrays().from(offset);
        if (const void* kept = pass.kept_gradient(index, piece.parameter)) arrays.gradient = kept;
        if (held.device().is_cpu()) {
          sums[entry] = moments_on_host(arrays, piece.numel, step);
        } else {
          on_device.add(entry, moments_on_device(arrays, piece.numel, step, held.device()));
        }
      }
    }
    pass.write_back(index, {});
  }
  pass.end();
  on_device.fetch_into(sums, communicator);
  if (in_parts) {
    const auto* mine = sums.data() + static_cast<std::size_t>(communicator.rank()) * parameters;
    const std::string all =
        comm::all_gather_small(communicator, {reinterpret_cast<const char*>(mine), parameters * sizeof(LambSums)},
                               comm::Tag{"norms of Lamb", 0});
    std::memcpy(sums.data(), all.data(), all.size());
  }
  std::vector<double> ratios(parameters, 1.0);
  for (std::size_t i = 0; i < parameters; ++i) {
    const int group =
        state.layout()->pages()[static_cast<std::size_t>(state.layout()->page_of(static_cast<int>(i)))].group;
    if (!inputs.received[i] || group < 0) continue;
    LambSums total;
    for (std::size_t rank = 0; rank < world; ++rank) {
      total.parameter += sums[rank * parameters + i].parameter;
      total.direction += sums[rank * parameters + i].direction;
    }
    ratios[i] = optim::lamb_ratio(total, inputs.groups[static_cast<std::size_t>(group)]);
  }
  return ratios;
}

void lamb_move(const optim::Arrays& arrays, std::int64_t numel, const optim::Step& step, double ratio,
               c10::Device device) {
  if (device.is_cpu()) {
    return in_blocks(numel, [&](std::int64_t, std::int64_t begin, std::int64_t count) {
      optim::lamb_apply(arrays.from(begin), count, step, ratio);
    });
  }
  const auto master = view_of(arrays.master, numel, device);
  master.sub_(direction_on_device(arrays, numel, step, device), step.params.lr * ratio);
  if (arrays.parameter_dtype != DType::kFloat32) {
    memory::flat_view(arrays.parameter, numel, scalar_type_of(arrays.parameter_dtype), device).copy_(master);
  }
}

}  // namespace zeropage::engine
