// The update kernel against the memory bus and against torch, one line of JSON each:
//   optim      AdamW in fp32 against a stream of the same reads and writes (4 and 3) without arithmetic, and against
//              torch's fused AdamW: with ordinary tensors, as torch.optim.AdamW(fused=True) has them, and with tensors
//              in the engine's memory, which is on huge pages
//   host_step  bf16 gradient in, bf16 parameter out, clipped: norm and update of the engine against cast, norm, clip,
//              fused AdamW and cast back as operators of torch
// The contestants alternate, on the same memory except where noted above, each round beginning with a different one.

#include "zeropage/memory/torch_config.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <functional>
#include <string>
#include <vector>

#include "zeropage/engine/host_update.h"
#include "zeropage/memory/device_buffer.h"
#include "zeropage/optim/norm.h"

namespace zeropage::bench {
namespace {

constexpr double kLr = 1e-3;
constexpr double kDecay = 0.01;
constexpr double kMaxNorm = 1.0;
constexpr std::int64_t kGrainNumel = 1 << 16;

/// Seconds of every round of each contestant.
std::vector<std::vector<double>> take_turns(const std::vector<std::function<void()>>& contestants, int rounds) {
  std::vector<std::vector<double>> seconds(contestants.size());
  for (const auto& contestant : contestants) contestant();  // the first touch of its memory
  for (int round = 0; round < rounds; ++round) {
    for (std::size_t turn = 0; turn < contestants.size(); ++turn) {
      const std::size_t index = (turn + static_cast<std::size_t>(round)) % contestants.size();
      const auto started = std::chrono::steady_clock::now();
      contestants[index]();
      seconds[index].push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count());
    }
  }
  return seconds;
}

double quantile(std::vector<double> values, double part) {
  std::sort(values.begin(), values.end());
  return values[static_cast<std::size_t>(part * static_cast<double>(values.size() - 1) + 0.5)];
}

/// "NAME": median of the paired ratios theirs / ours, their quartiles, and the ratio of the minima: above 1 we are
/// faster.
std::string speed_figures(const std::string& name, const std::vector<double>& ours, const std::vector<double>& theirs) {
  std::vector<double> ratios;
  for (std::size_t i = 0; i < ours.size(); ++i) ratios.push_back(theirs[i] / ours[i]);
  const double of_minima =
      *std::min_element(theirs.begin(), theirs.end()) / *std::min_element(ours.begin(), ours.end());
  return fmt::format("\"{0}\": {1:.3f}, \"{0}_quartiles\": [{2:.3f}, {3:.3f}], \"{0}_of_minima\": {4:.3f}", name,
                     quantile(ratios, 0.5), quantile(ratios, 0.25), quantile(ratios, 0.75), of_minima);
}

std::string rate_figures(const std::string& name, const std::vector<double>& seconds, double bytes) {
  const double least_s = *std::min_element(seconds.begin(), seconds.end());
  return fmt::format("\"{0}_ms\": {1:.1f}, \"{0}_gb_per_s\": {2:.1f}", name, least_s * 1e3, bytes / least_s * 1e-9);
}

/// Memory as the engine's: fp32 arrays of `numel`.
class Floats {
 public:
  Floats(std::int64_t numel, double scale)
      : memory_(numel * 4, c10::Device(at::kCPU), std::make_shared<Ledger>(), MemoryKind::kOptimizer),
        tensor_(memory::flat_view(memory_.data(), numel, at::kFloat, at::kCPU)) {
    if (scale != 0.0) tensor_.normal_().mul_(scale);
  }
  float* data() { return reinterpret_cast<float*>(memory_.data()); }
  const at::Tensor& tensor() const { return tensor_; }

 private:
  memory::DeviceBuffer memory_;
  at::Tensor tensor_;
};

#if defined(__x86_64__)
__attribute__((target_clones("default", "avx2", "arch=x86-64-v4")))
#endif
void stream(float* __restrict a, float* __restrict b, float* __restrict c, const float* __restrict d, std::int64_t numel) {
  for (std::int64_t i = 0; i < numel; ++i) {
    const float sum = a[i] + b[i] + c[i] + d[i];
    a[i] = sum * 0.25F;
    b[i] = sum * 0.125F;
    c[i] = sum * 0.0625F;
  }
}

void torch_fused_adamw(const at::Tensor& p, const at::Tensor& gradient, const at::Tensor& m, const at::Tensor& v,
                       const at::Tensor& step) {
  at::_fused_adamw_({p}, {gradient}, {m}, {v}, {}, {step}, kLr, 0.9, 0.999, kDecay, 1e-8, /*amsgrad=*/false,
                    /*maximize=*/false);
}

optim::Step adamw_step(float gradient_scale) {
  return {config::OptimizerKind::kAdamW, {.lr = kLr, .weight_decay = kDecay}, 10, gradient_scale};
}

void bench_optim(std::int64_t numel, int rounds) {
  Floats p(numel, 1.0), m(numel, 0.0), v(numel, 0.0), g(numel, 0.01);
  const at::Tensor step = at::full({}, 10.0, at::kFloat);
  const optim::Arrays arrays{.master = p.data(), .states = {m.data(), v.data()}, .gradient = g.data()};
  const auto ours = [&] { engine::update_on_host(arrays, {{0, numel, adamw_step(1.0F)}}); };
  const auto fused = [&] { torch_fused_adamw(p.tensor(), g.tensor(), m.tensor(), v.tensor(), step); };
  const at::Tensor own_p = p.tensor().clone(), own_g = g.tensor().clone(), own_m = m.tensor().clone(),
                   own_v = v.tensor().clone();
  const auto fused_in_own = [&] { torch_fused_adamw(own_p, own_g, own_m, own_v, step); };
  // Last, because it overwrites the moments; the others then run on these values, which does not change their times.
  const auto streamed = [&] {
    at::parallel_for(0, numel, kGrainNumel, [&](std::int64_t begin, std::int64_t end) {
      stream(p.data() + begin, m.data() + begin, v.data() + begin, g.data() + begin, end - begin);
    });
  };
  const auto seconds = take_turns({ours, fused, fused_in_own, streamed}, rounds);
  const double bytes = 28.0 * static_cast<double>(numel);
  fmt::print(
      "{{\"bench\": \"optim\", \"numel\": {}, \"threads\": {}, \"bytes_per_parameter\": 28, {}, {}, {}, {}, {}, {}, "
      "\"targets\": [0.9, 1.0]}}\n",
      numel, at::get_num_threads(), speed_figures("of_stream", seconds[0], seconds[3]),
      speed_figures("over_torch_fused", seconds[0], seconds[2]),
      speed_figures("over_torch_fused_in_our_memory", seconds[0], seconds[1]), rate_figures("ours", seconds[0], bytes),
      rate_figures("torch_fused", seconds[2], bytes), rate_figures("stream", seconds[3], bytes));
}

/// A separate pass, because there is no reduction here that would also sum the squares.
double sum_of_squares(const at::Tensor& bf16) {
  const auto* data = static_cast<const std::byte*>(bf16.const_data_ptr());
  return at::parallel_reduce(
      0, bf16.numel(), kGrainNumel, 0.0,
      [&](std::int64_t begin, std::int64_t end, double sum) {
        return sum + optim::sum_of_squares(data + 2 * begin, DType::kBFloat16, end - begin);
      },
      std::plus<>());
}

void bench_host_step(std::int64_t numel, int rounds) {
  Floats p(numel, 1.0), m(numel, 0.0), v(numel, 0.0);
  Floats halves(numel, 1.0);  // room for two arrays of bf16
  const auto half = [&](std::int64_t begin) {
    return memory::flat_view(halves.data() + begin / 2, numel, at::kBFloat16, at::kCPU);
  };
  const at::Tensor gradient = half(0).normal_(0.0, 0.01);
  const at::Tensor parameter = half(numel).copy_(p.tensor());
  const Floats wide_memory(numel, 0.0);
  const at::Tensor& wide = wide_memory.tensor();
  const at::Tensor step = at::full({}, 10.0, at::kFloat);
  const optim::Arrays arrays{.master = p.data(),
                             .states = {m.data(), v.data()},
                             .gradient = gradient.data_ptr(),
                             .gradient_dtype = DType::kBFloat16,
                             .parameter = parameter.data_ptr(),
                             .parameter_dtype = DType::kBFloat16};
  const auto ours = [&] {
    const double squares = sum_of_squares(gradient);
    const float scale = optim::clip_coefficient(std::sqrt(squares), kMaxNorm);
    engine::update_on_host(arrays, {{0, numel, adamw_step(scale)}});
  };
  const auto operators = [&] {
    wide.copy_(gradient);
    const double norm = at::linalg_vector_norm(wide).item<double>();
    wide.mul_(optim::clip_coefficient(norm, kMaxNorm));
    torch_fused_adamw(p.tensor(), wide, m.tensor(), v.tensor(), step);
    const_cast<at::Tensor&>(parameter).copy_(p.tensor());
  };
  const auto seconds = take_turns({ours, operators}, rounds);
  // Norm 2, update 2 + 24 + 2 (gradient, fp32 state in and out, parameter); cast 6, norm 4, clip 8, update 28, cast
  // back 6.
  const double our_bytes = 30, their_bytes = 52;
  const auto total = static_cast<double>(numel);
  fmt::print(
      "{{\"bench\": \"host_step\", \"numel\": {}, \"threads\": {}, \"bytes_per_parameter\": [{}, {}], {}, {}, {}, "
      "\"target\": 1.8}}\n",
      numel, at::get_num_threads(), our_bytes, their_bytes, speed_figures("over_operators", seconds[0], seconds[1]),
      rate_figures("ours", seconds[0], our_bytes * total), rate_figures("operators", seconds[1], their_bytes * total));
}

}  // namespace
}  // namespace zeropage::bench

int main(int argc, char** argv) {
  CLI::App app("AdamW against a stream and torch's fused one, and the host step against separate operators");
  std::int64_t numel = 100'000'000;
  int rounds = 15;
  app.add_option("--numel", numel, "Parameters")->check(CLI::PositiveNumber);
  app.add_option("--rounds", rounds, "Turns of each contestant")->check(CLI::PositiveNumber);
  CLI11_PARSE(app, argc, argv);
  c10::AutoGradMode no_grad(false);
  zeropage::bench::bench_optim(numel, rounds);
  zeropage::bench::bench_host_step(numel, rounds);
  return 0;
}
