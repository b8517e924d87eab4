// The vector versions of update.cc, with Highway: this file is compiled once per instruction set (foreach_target.h
// includes it repeatedly), and the first call chooses the widest set of the processor. Only Highway's headers are used:
// its own choice at run time needs a shared library, which a wheel would have to contain.
//
// Every operation is exactly rounded and none is fused, so all sets and the scalar reference give the same bits.

// The sets between these only cost compile time here.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "zeropage/optim/update_vectors.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "zeropage/optim/rules.h"

HWY_BEFORE_NAMESPACE();
namespace zeropage::optim::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

using Floats = hn::ScalableTag<float>;
using Words = hn::RebindToUnsigned<Floats>;
using Signed = hn::RebindToSigned<Floats>;
using Halves = hn::Rebind<std::uint16_t, Floats>;
using Vector = hn::Vec<Floats>;
using WordVector = hn::Vec<Words>;

HWY_INLINE Vector all(float value) { return hn::Set(Floats(), value); }
HWY_INLINE WordVector word(std::uint32_t value) { return hn::Set(Words(), value); }

/// a > b for words below 2^31; every set has the signed comparison.
HWY_INLINE hn::Mask<Words> greater(WordVector a, WordVector b) {
  return hn::RebindMask(Words(), hn::Gt(hn::BitCast(Signed(), a), hn::BitCast(Signed(), b)));
}

HWY_INLINE WordVector load_halves(const void* data, std::int64_t i) {
  return hn::PromoteTo(Words(), hn::LoadU(Halves(), static_cast<const std::uint16_t*>(data) + i));
}

HWY_INLINE void store_halves(WordVector bits, void* data, std::int64_t i) {
  hn::StoreU(hn::DemoteTo(Halves(), hn::BitCast(Signed(), bits)), Halves(), static_cast<std::uint16_t*>(data) + i);
}

// The types of gradients and parameters. Conversions are those of convert.h, operation by operation.

struct Float32 {
  static HWY_INLINE Vector load(const void* data, std::int64_t i) {
    return hn::LoadU(Floats(), static_cast<const float*>(data) + i);
  }
  static HWY_INLINE void store(Vector, void*, std::int64_t) {}  // the master is the parameter
};

struct BFloat16 {
  static HWY_INLINE Vector load(const void* data, std::int64_t i) {
    return hn::BitCast(Floats(), hn::ShiftLeft<16>(load_halves(data, i)));
  }
  static HWY_INLINE void store(Vector value, void* data, std::int64_t i) {
    const WordVector bits = hn::BitCast(Words(), value);
    const WordVector upper = hn::ShiftRight<16>(bits);
    const WordVector rounded = hn::ShiftRight<16>(hn::Add(hn::Add(bits, word(0x7fff)), hn::And(upper, word(1))));
    const auto is_nan = greater(hn::And(bits, word(0x7fffffff)), word(0x7f800000));
    store_halves(hn::IfThenElse(is_nan, hn::Or(upper, word(0x40)), rounded), data, i);
  }
};

struct Float16 {
  static HWY_INLINE Vector load(const void* data, std::int64_t i) {
    const WordVector half = load_halves(data, i);
    const WordVector sign = hn::ShiftLeft<16>(hn::And(half, word(0x8000)));
    const WordVector magnitude = hn::ShiftLeft<13>(hn::And(half, word(0x7fff)));
    const WordVector normal = hn::Add(magnitude, word(112U << 23));
    const WordVector special = hn::Add(magnitude, word(224U << 23));
    const Vector shifted =
        hn::Sub(hn::BitCast(Floats(), hn::Add(magnitude, word(113U << 23))), hn::BitCast(Floats(), word(113U << 23)));
    const WordVector finite =
        hn::IfThenElse(greater(word(0x00800000), magnitude), hn::BitCast(Words(), shifted), normal);
    return hn::BitCast(Floats(), hn::Or(sign, hn::IfThenElse(greater(magnitude, word(0x0f7fffff)), special, finite)));
  }
  static HWY_INLINE void store(Vector value, void* data, std::int64_t i) {
    const WordVector bits = hn::BitCast(Words(), value);
    const WordVector sign = hn::And(hn::ShiftRight<16>(bits), word(0x8000));
    const WordVector magnitude = hn::And(bits, word(0x7fffffff));
    const WordVector odd = hn::And(hn::ShiftRight<13>(magnitude), word(1));
    const WordVector normal =
        hn::ShiftRight<13>(hn::Add(hn::Add(hn::Sub(magnitude, word(112U << 23)), word(0xfff)), odd));
    const WordVector subnormal =
        hn::Sub(hn::BitCast(Words(), hn::Add(hn::BitCast(Floats(), magnitude), all(0.5F))), word(0x3f000000));
    const WordVector special = hn::IfThenElse(greater(magnitude, word(0x7f800000)), word(0x7e00), word(0x7c00));
    const WordVector finite = hn::IfThenElse(greater(word(0x38800000), magnitude), subnormal, normal);
    store_halves(hn::Or(sign, hn::IfThenElse(greater(magnitude, word(0x477fffff)), special, finite)), data, i);
  }
};

// One vector of each rule, like update_element in update.cc.

HWY_INLINE Vector update_vector(const AdamRule& rule, Vector p, Vector& m, Vector& v, Vector g) {
  if (rule.l2 != 0.0F) g = hn::Add(g, hn::Mul(all(rule.l2), p));
  p = hn::Mul(p, all(rule.keep));
  const Vector difference = hn::Sub(g, m);
  m = hn::Add(rule.lerp_from_moment ? m : g, hn::Mul(all(rule.lerp_weight), difference));
  v = hn::Add(hn::Mul(v, all(rule.beta2)), hn::Mul(hn::Mul(all(rule.one_minus_beta2), g), g));
  const Vector root = hn::Add(hn::Div(hn::Sqrt(v), all(rule.sqrt_correction2)), all(rule.eps));
  return hn::Add(p, hn::Div(hn::Mul(all(rule.minus_step_size), m), root));
}

HWY_INLINE Vector update_vector(const LionRule& rule, Vector p, Vector& m, Vector&, Vector g) {
  const Vector direction = hn::Add(hn::Mul(all(rule.beta1), m), hn::Mul(all(rule.one_minus_beta1), g));
  m = hn::Add(hn::Mul(all(rule.beta2), m), hn::Mul(all(rule.one_minus_beta2), g));
  p = hn::Mul(p, all(rule.keep));
  const Vector zero = hn::Zero(Floats());
  const Vector lowered = hn::IfThenElse(hn::Gt(direction, zero), hn::Sub(p, all(rule.lr)), p);
  return hn::IfThenElse(hn::Lt(direction, zero), hn::Add(p, all(rule.lr)), lowered);
}

HWY_INLINE Vector update_vector(const AdagradRule& rule, Vector p, Vector& s, Vector&, Vector g) {
  if (rule.l2 != 0.0F) g = hn::Add(g, hn::Mul(all(rule.l2), p));
  s = hn::Add(s, hn::Mul(g, g));
  return hn::Add(p, hn::Div(hn::Mul(all(rule.minus_step_size), g), hn::Add(hn::Sqrt(s), all(rule.eps))));
}

HWY_INLINE Vector update_vector(const SgdRule& rule, Vector p, Vector&, Vector&, Vector g) {
  if (rule.l2 != 0.0F) g = hn::Add(g, hn::Mul(all(rule.l2), p));
  return hn::Add(p, hn::Mul(all(rule.minus_lr), g));
}

HWY_INLINE Vector update_vector(const MomentumRule& rule, Vector p, Vector& b, Vector&, Vector g) {
  if (rule.l2 != 0.0F) g = hn::Add(g, hn::Mul(all(rule.l2), p));
  b = hn::Add(hn::Mul(all(rule.keep_buffer), b), hn::Mul(all(rule.take_gradient), g));
  const Vector direction = rule.nesterov ? hn::Add(g, hn::Mul(all(rule.momentum), b)) : b;
  return hn::Add(p, hn::Mul(all(rule.minus_lr), direction));
}

template <typename Rule, typename Gradient, typename Parameter>
std::int64_t run(const Rule& given, const Arrays& given_arrays, std::int64_t numel) {
  const Rule rule = given;  // copies: stores through float pointers could otherwise change them
  const Arrays arrays = given_arrays;
  const Floats floats;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(floats));
  std::int64_t i = 0;
  for (; i + lanes <= numel; i += lanes) {
    Vector first = hn::Zero(floats);
    Vector second = hn::Zero(floats);
    if constexpr (Rule::kStates > 0) first = hn::LoadU(floats, arrays.states[0] + i);
    if constexpr (Rule::kStates > 1) second = hn::LoadU(floats, arrays.states[1] + i);
    const Vector gradient = hn::Mul(Gradient::load(arrays.gradient, i), all(rule.gradient_scale));
    const Vector updated = update_vector(rule, hn::LoadU(floats, arrays.master + i), first, second, gradient);
    hn::StoreU(updated, floats, arrays.master + i);
    if constexpr (Rule::kStates > 0) hn::StoreU(first, floats, arrays.states[0] + i);
    if constexpr (Rule::kStates > 1) hn::StoreU(second, floats, arrays.states[1] + i);
    Parameter::store(updated, arrays.parameter, i);
  }
  return i;
}

template <typename Call>
std::int64_t with_type(DType dtype, Call&& call) {
  if (dtype == DType::kBFloat16) return call(BFloat16());
  if (dtype == DType::kFloat16) return call(Float16());
  return call(Float32());
}

}  // namespace

std::int64_t update_vectors(const Arrays& arrays, std::int64_t numel, const Step& step) {
  return with_rule(step, [&](const auto& rule) {
    return with_type(arrays.gradient_dtype, [&]<typename Gradient>(Gradient) {
      return with_type(arrays.parameter_dtype, [&]<typename Parameter>(Parameter) {
        return run<std::decay_t<decltype(rule)>, Gradient, Parameter>(rule, arrays, numel);
      });
    });
  });
}

}  // namespace zeropage::optim::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace zeropage::optim {

std::vector<VectorKernel> vector_kernels() {
  std::vector<VectorKernel> kernels;
#if HWY_ARCH_X86_64
  // Highway's AVX2 and AVX-512 sets are x86-64-v3 and v4, and cryptographic instructions that all such processors have.
  const bool extras = __builtin_cpu_supports("aes") && __builtin_cpu_supports("pclmul");
#if HWY_TARGETS & HWY_AVX3
  if (extras && __builtin_cpu_supports("x86-64-v4")) kernels.push_back({"AVX-512", N_AVX3::update_vectors});
#endif
#if HWY_TARGETS & HWY_AVX2
  if (extras && __builtin_cpu_supports("x86-64-v3")) kernels.push_back({"AVX2", N_AVX2::update_vectors});
#endif
#endif
  kernels.push_back({"least", HWY_STATIC_DISPATCH(update_vectors)});
  return kernels;
}

std::int64_t update_vectors(const Arrays& arrays, std::int64_t numel, const Step& step) {
  static const VectorKernel kernel = vector_kernels().front();
  return kernel.update(arrays, numel, step);
}

}  // namespace zeropage::optim
#endif  // HWY_ONCE
