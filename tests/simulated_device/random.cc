#include "random.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Functions.h>
#include <torch/library.h>

#include <array>
#include <cstring>
#include <tuple>

#include "current.h"

namespace simulated_device {
namespace {

/// Its state is the seed and how many operators have drawn from it.
struct GeneratorImpl final : c10::GeneratorImpl {
  explicit GeneratorImpl(c10::DeviceIndex device)
      : c10::GeneratorImpl(c10::Device(kType, device), c10::DispatchKeySet(c10::DispatchKey::PrivateUse1)) {}

  void set_current_seed(std::uint64_t seed) override {
    seed_ = seed;
    count_ = 0;
  }
  std::uint64_t current_seed() const override { return seed_; }
  std::uint64_t seed() override {
    set_current_seed(c10::detail::getNonDeterministicRandom());
    return seed_;
  }
  void set_offset(std::uint64_t offset) override { count_ = offset; }
  std::uint64_t get_offset() const override { return count_; }

  void set_state(const c10::TensorImpl& state) override {
    TORCH_CHECK(state.numel() == 16 && state.dtype() == caffe2::TypeMeta::Make<std::uint8_t>(),
                "simulated device: a generator's state has 16 bytes");
    std::array<std::uint64_t, 2> values{};
    std::memcpy(values.data(), state.data(), sizeof values);
    seed_ = values[0];
    count_ = values[1];
  }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    auto state = at::empty({16}, at::kByte);
    const std::array<std::uint64_t, 2> values{seed_, count_};
    std::memcpy(state.data_ptr(), values.data(), sizeof values);
    return state.getIntrusivePtr();
  }
  std::uint64_t next() { return (seed_ * 0x9E3779B97F4A7C15ULL) ^ (++count_ * 0xD1B54A32D192ED03ULL); }

  static c10::DeviceType device_type() { return kType; }

 private:
  GeneratorImpl* clone_impl() const override {
    auto* copy = new GeneratorImpl(device_.index());
    copy->seed_ = seed_;
    copy->count_ = count_;
    return copy;
  }

  std::uint64_t seed_ = c10::default_rng_seed_val;
  std::uint64_t count_ = 0;
};

/// Torch's operator for the CPU draws from the CPU's random numbers, but these must be the device's.
std::tuple<at::Tensor, at::Tensor> native_dropout(const at::Tensor& input, double p, std::optional<bool> train) {
  const bool drops = train.value_or(true);
  const double kept = drops ? 1.0 - p : 1.0;
  at::Tensor mask = at::empty_like(input, input.options().dtype(at::kBool));
  drops ? mask.bernoulli_(kept) : mask.fill_(true);
  return {input.mul(mask).mul_(kept == 0.0 ? 0.0 : 1.0 / kept), mask};
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) { library.impl("native_dropout", &native_dropout); }

}  // namespace

const at::Generator& default_generator(int device) {
  static auto* generators = new std::array<at::Generator, kDevices>();
  static std::once_flag once;
  std::call_once(once, [] {
    for (int i = 0; i < kDevices; ++i) (*generators)[i] = new_generator(i);
  });
  return (*generators)[device];
}

at::Generator new_generator(int device) {
  return at::make_generator<GeneratorImpl>(static_cast<c10::DeviceIndex>(device));
}

at::Generator next_cpu_generator(const std::optional<at::Generator>& generator, int device) {
  at::Generator used = generator && generator->defined() ? *generator : default_generator(device);
  const std::lock_guard lock(used.mutex());
  return at::make_generator<at::CPUGeneratorImpl>(used.get<GeneratorImpl>()->next());
}

}  // namespace simulated_device
