#include "zeropage/cpp/buffers.h"

#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/instancenorm.h>

#include <algorithm>
#include <map>

#include "zeropage/cpp/engine_impl.h"
#include "zeropage/engine/init.h"
#include "zeropage/session/data_types.h"

namespace zeropage::cpp {
namespace {

/// A norm with running statistics.
struct Norm {
  std::string name;
  at::Tensor weight;  // undefined: it has none
  std::vector<at::Tensor> buffers;
};

template <class Impl>
void add_if(const std::string& name, torch::nn::Module& module, std::vector<Norm>& norms) {
  auto* norm = module.as<Impl>();
  if (norm == nullptr || !norm->options.track_running_stats()) return;
  norms.push_back({name, norm->weight, norm->buffers(/*recurse=*/false)});
}

std::vector<Norm> norms_of(torch::nn::Module& model) {
  using namespace torch::nn;
  std::vector<Norm> norms;
  for (const auto& item : model.named_modules(/*name_prefix=*/"", /*include_self=*/false)) {
    add_if<BatchNorm1dImpl>(item.key(), *item.value(), norms);
    add_if<BatchNorm2dImpl>(item.key(), *item.value(), norms);
    add_if<BatchNorm3dImpl>(item.key(), *item.value(), norms);
    add_if<InstanceNorm1dImpl>(item.key(), *item.value(), norms);
    add_if<InstanceNorm2dImpl>(item.key(), *item.value(), norms);
    add_if<InstanceNorm3dImpl>(item.key(), *item.value(), norms);
  }
  return norms;
}

}  // namespace

std::vector<std::string> declared_in_fp32(torch::nn::Module& model) {
  std::vector<std::string> names;
  for (const auto& norm : norms_of(model)) {
    std::string name;  // as a regular expression
    for (const char c : norm.name) name += c == '.' ? std::string("\\.") : std::string(1, c);
    names.push_back(std::move(name));
  }
  return names;
}

void cast_buffers(torch::nn::Module& model, const config::Config& config,
                  const std::vector<engine::ParameterInput>& parameters) {
  const session::DataTypes types = session::data_types(config);
  std::map<const void*, at::ScalarType> follow;
  for (const auto& norm : norms_of(model)) {
    if (!norm.weight.defined()) continue;
    const auto weight = std::find_if(parameters.begin(), parameters.end(),
                                     [&](const auto& parameter) { return parameter.tensor.is_same(norm.weight); });
    const bool wide = weight == parameters.end() || weight->keep_fp32;
    for (const auto& buffer : norm.buffers) {
      follow[buffer.unsafeGetTensorImpl()] = wide ? at::kFloat : types.parameters;
    }
  }
  for (auto& buffer : model.buffers()) {
    engine::settle(buffer);
    if (!buffer.is_floating_point()) continue;
    const auto found = follow.find(buffer.unsafeGetTensorImpl());
    const auto wanted = types.buffers.value_or(buffer.scalar_type());
    const at::Tensor cast = buffer.to(found != follow.end() ? found->second : wanted);
    if (!cast.is_same(buffer)) buffer.set_data(cast);
  }
}

}  // namespace zeropage::cpp
