// All other operators: a fallback that runs the CPU's kernel as a task on the current stream.
//
//   1. Tensors of the device become tensors on the CPU over the same memory (by its private address). CPU tensors are
//      read now.
//   2. The operator's results must exist before it runs. In-place and out= variants return arguments. For the others
//      the operator runs on the meta device, which gives sizes and types.
//   3. The task runs the operator on the CPU and copies its results into the tensors of step 2.
//   4. Where the meta device cannot tell (sizes depend on values, no meta kernel) the calling thread waits for the
//      CPU's results. The wait counts for the host only for operators that also make the host wait on a GPU.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <algorithm>
#include <set>

#include "current.h"
#include "random.h"
#include "torch_parts.h"

namespace simulated_device {
namespace {

using torch::jit::Stack;

/// Operators for whose results the host waits on every device.
const std::set<std::string> kWaits = {"aten::nonzero",
                                      "aten::nonzero_static",
                                      "aten::masked_select",
                                      "aten::equal",
                                      "aten::_unique2",
                                      "aten::unique_dim",
                                      "aten::bincount",
                                      "aten::is_nonzero",
                                      "aten::unique_consecutive",
                                      "aten::repeat_interleave"};

/// Operators that write their argument without reading it.
const std::set<std::string> kOnlyWrite = {"aten::zero_",   "aten::fill_",      "aten::normal_", "aten::uniform_",
                                          "aten::random_", "aten::bernoulli_", "aten::set_",    "aten::exponential_"};

/// Operators whose results have other types on the CPU than the meta device says; in 16 bits, for example.
const std::set<std::string> kMetaDiffers = {"aten::native_layer_norm", "aten::native_group_norm",
                                            "aten::native_batch_norm"};

std::string without_overload(const std::string& name) { return name.substr(0, name.find('.')); }

/// Whether it accepts tensors on the CPU of any size together with those of the device, as on a GPU.
bool takes_host_tensors(const std::string& name) { return name.find("index") != std::string::npos; }

struct Call {
  const c10::OperatorHandle& op;
  std::string name;
  int device;
  Stack host;  ///< the arguments for the CPU
  std::vector<Use> uses;
};

/// `value` with every tensor replaced by `change`.
template <typename Change>
c10::IValue with_tensors(const c10::IValue& value, const Change& change) {
  if (value.isTensor()) return value.toTensor().defined() ? c10::IValue(change(value.toTensor())) : value;
  if (value.isTensorList()) {
    c10::List<at::Tensor> changed;
    for (const at::Tensor& tensor : value.toTensorVector()) changed.push_back(change(tensor));
    return changed;
  }
  if (value.isList() && value.toListRef().size() > 0 && value.type()->cast<c10::ListType>() &&
      value.type()->expectRef<c10::ListType>().getElementType()->kind() == c10::TypeKind::OptionalType) {
    c10::List<std::optional<at::Tensor>> changed;
    for (const c10::IValue& element : value.toListRef()) {
      if (!element.isTensor() && !element.isNone()) return value;
      changed.push_back(element.isTensor() && element.toTensor().defined() ? std::optional(change(element.toTensor()))
                                                                           : std::nullopt);
    }
    return changed;
  }
  return value;
}

c10::IValue for_the_cpu(Call& call, const c10::IValue& value, const c10::Argument& argument) {
  if (value.isDevice()) return c10::Device(c10::kCPU);
  if (value.isGenerator() || argument.name() == "generator") {
    return next_cpu_generator(value.isGenerator() ? std::optional(value.toGenerator()) : std::nullopt, call.device);
  }
  const bool writes = argument.alias_info() != nullptr && argument.alias_info()->isWrite();
  return with_tensors(value, [&](const at::Tensor& tensor) {
    if (tensor.is_cpu()) {
      TORCH_CHECK(tensor.dim() == 0 || takes_host_tensors(call.name), call.name, ": argument '", argument.name(),
                  "' is on the CPU and others are on simulated:", call.device);
      return tensor.clone();
    }
    TORCH_CHECK(tensor.device() == c10::Device(kType, static_cast<c10::DeviceIndex>(call.device)), call.name,
                ": argument '", argument.name(), "' is on ", tensor.device(),
                " and others are on simulated:", call.device);
    if (tensor.numel() > 0) {
      if (!writes || !(argument.is_out() || kOnlyWrite.contains(without_overload(call.name)))) {
        call.uses.push_back(use_of(tensor, false));
      }
      if (writes) call.uses.push_back(use_of(tensor, true));
    }
    return inside_view(tensor, call.device);
  });
}

/// The device of the first argument that has one.
int device_of_call(const Stack& arguments) {
  int device = -1;
  for (const auto& value : arguments) {
    with_tensors(value, [&](const at::Tensor& tensor) {
      if (device < 0 && tensor.device().type() == kType) device = tensor.device().index();
      return tensor;
    });
    if (device >= 0) return device;
  }
  for (const auto& value : arguments) {
    if (value.isDevice() && value.toDevice().type() == kType) return device_index(value.toDevice().index());
  }
  return current_device();
}

bool returns_arguments(const c10::FunctionSchema& schema) {
  for (const auto& result : schema.returns()) {
    if (result.alias_info() == nullptr) return false;
  }
  return true;
}

/// The argument that a result is.
const c10::IValue& argument_of(const c10::FunctionSchema& schema, const Stack& arguments, const c10::Argument& result) {
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const auto* alias = schema.arguments()[i].alias_info();
    if (alias != nullptr && alias->beforeSets() == result.alias_info()->beforeSets()) return arguments[i];
  }
  TORCH_CHECK(false, schema.name(), ": simulated device: no argument is the result");
}

at::Tensor new_like(const at::Tensor& tensor, int device) {
  return at::empty_strided(tensor.sizes(), tensor.strides(),
                           tensor.options().device(c10::Device(kType, static_cast<c10::DeviceIndex>(device))));
}

/// The operator's results according to the meta device; empty if it cannot run there.
std::vector<at::Tensor> results_by_meta(const Call& call, const Stack& arguments) {
  static std::mutex mutex;
  static std::set<std::string> without;
  {
    const std::lock_guard lock(mutex);
    if (without.contains(call.name) || kMetaDiffers.contains(without_overload(call.name))) return {};
  }
  Stack stack;
  for (const auto& value : arguments) {
    if (value.isDevice()) {
      stack.emplace_back(c10::Device(c10::kMeta));
    } else if (value.isGenerator()) {
      stack.emplace_back();
    } else {
      stack.push_back(with_tensors(value, [](const at::Tensor& tensor) {
        if (tensor.is_cpu() && tensor.dim() == 0) return tensor;
        return at::empty_strided(tensor.sizes(), tensor.strides(), tensor.options().device(at::kMeta));
      }));
    }
  }
  std::vector<at::Tensor> results;
  try {
    call.op.callBoxed(stack);
    for (const auto& value : stack) {
      TORCH_CHECK(value.isTensor(), "not a tensor");
      results.push_back(value.toTensor().defined() ? new_like(value.toTensor(), call.device) : at::Tensor());
    }
  } catch (const std::exception&) {
    const std::lock_guard lock(mutex);
    without.insert(call.name);
    return {};
  }
  return results;
}

/// Tasks run below autograd, on one thread.
Stack run_on_cpu(const c10::OperatorHandle& op, Stack stack) {
  thread_local const bool prepared = [] {
    at::set_num_threads(1);
    return true;
  }();
  static_cast<void>(prepared);
  const at::AutoDispatchBelowAutograd below;
  try {
    op.callBoxed(stack);
  } catch (const c10::Error& error) {
    throw std::runtime_error(error.what_without_backtrace());
  }
  return stack;
}

void launch_into(const Call& call, std::vector<at::Tensor> results) {
  auto& stream = current_stream(call.device);
  auto uses = call.uses;
  std::vector<at::Tensor> targets;
  for (const auto& result : results) {
    if (result.defined() && result.numel() > 0) uses.push_back(use_of(result, true));
    targets.push_back(result.defined() ? inside_view(result, call.device) : result);
  }
  Machine::get().launch(stream, call.name, uses, [op = call.op, host = call.host, targets] {
    const auto made = run_on_cpu(op, host);
    for (std::size_t i = 0; i < targets.size(); ++i) {
      const auto& from = made[i].toTensor();
      if (!targets[i].defined() || !from.defined()) continue;
      if (from.sizes() != targets[i].sizes() || from.scalar_type() != targets[i].scalar_type()) {
        throw std::runtime_error(c10::str("result ", i, " is ", from.scalar_type(), from.sizes(), " on the CPU and ",
                                          targets[i].scalar_type(), targets[i].sizes(),
                                          " by the meta device: name the operator in kMetaDiffers"));
      }
      targets[i].copy_(from);
    }
  });
}

/// Results of unknown size: the calling thread waits for them.
Stack run_and_wait(const Call& call) {
  auto& stream = current_stream(call.device);
  auto made = std::make_shared<Stack>();
  const auto task = [op = call.op, host = call.host, made] { *made = run_on_cpu(op, host); };
  bool values = kWaits.contains(without_overload(call.name));
  for (const auto& result : call.op.schema().returns()) values |= result.type()->kind() != c10::TypeKind::TensorType;
  Machine::get().launch(stream, call.name, call.uses, task);
  const auto point = Machine::get().record(stream);
  values ? Machine::get().wait(point, &Counters::fetches) : Machine::get().wait_unnoticed(point);

  Stack results;
  const auto to_device = [&](const at::Tensor& tensor) {
    const auto result = new_like(tensor, call.device);
    if (tensor.numel() == 0) return result;
    Machine::get().launch(stream, call.name, {use_of(result, true)},
                          [tensor, target = inside_view(result, call.device)] { target.copy_(tensor); });
    return result;
  };
  for (const auto& value : *made) results.push_back(with_tensors(value, to_device));
  return results;
}

/// out= variants whose results may get another size: they run on empty CPU tensors, which are copied.
void run_resizing(Call& call, const Stack& arguments) {
  const auto& schema = call.op.schema();
  std::vector<std::size_t> written;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const auto* alias = schema.arguments()[i].alias_info();
    if (alias == nullptr || !alias->isWrite() || !arguments[i].isTensor()) continue;
    written.push_back(i);
    call.host[i] = at::empty({0}, arguments[i].toTensor().options().device(at::kCPU));
  }
  auto& stream = current_stream(call.device);
  Machine::get().launch(stream, call.name, call.uses, [op = call.op, host = call.host] { run_on_cpu(op, host); });
  const auto point = Machine::get().record(stream);
  if (kWaits.contains(without_overload(call.name))) {
    Machine::get().wait(point, &Counters::fetches);
  } else {
    Machine::get().wait_unnoticed(point);
  }
  for (const auto i : written) {
    const auto result = arguments[i].toTensor();
    const auto made = call.host[i].toTensor();
    result.resize_(made.sizes());
    if (made.numel() == 0) continue;
    Machine::get().launch(stream, call.name, {use_of(result, true)},
                          [made, target = inside_view(result, call.device)] { target.copy_(made); });
  }
}

bool writes_into_nothing(const c10::FunctionSchema& schema, const Stack& arguments) {
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const auto* alias = schema.arguments()[i].alias_info();
    if (alias != nullptr && alias->isWrite() && schema.arguments()[i].is_out() && arguments[i].isTensor() &&
        arguments[i].toTensor().numel() == 0) {
      return true;
    }
  }
  return false;
}

/// Random numbers of the device come from a generator, for which almost all random operators have an argument.
bool draws_unseen(const c10::OperatorHandle& op) {
  const auto is_generator = [](const c10::Argument& argument) { return argument.name() == "generator"; };
  return op.hasTag(at::Tag::nondeterministic_seeded) && std::ranges::none_of(op.schema().arguments(), is_generator);
}

void fallback(const c10::OperatorHandle& op, Stack* stack) {
  Machine::get().rethrow();
  const auto& schema = op.schema();
  const auto count = schema.arguments().size();
  const Stack arguments(stack->end() - static_cast<std::ptrdiff_t>(count), stack->end());
  Call call{op, toString(schema.operator_name()), device_of_call(arguments), {}, {}};
  TORCH_CHECK(!draws_unseen(op), "simulated device: ", call.name,
              " would draw from the CPU's random numbers; write it in random.cc, as native_dropout");
  const c10::DeviceGuard guard(c10::Device(kType, static_cast<c10::DeviceIndex>(call.device)));
  note_context(call.device);
  for (std::size_t i = 0; i < count; ++i) call.host.push_back(for_the_cpu(call, arguments[i], schema.arguments()[i]));

  Stack results;
  if (!schema.returns().empty() && !returns_arguments(schema)) {
    const auto made = results_by_meta(call, arguments);
    if (made.empty()) {
      results = run_and_wait(call);
    } else {
      launch_into(call, made);
      for (const auto& tensor : made) results.emplace_back(tensor);
    }
  } else {
    if (writes_into_nothing(schema, arguments)) {
      run_resizing(call, arguments);
    } else {
      launch_into(call, {});
    }
    for (const auto& result : schema.returns()) results.push_back(argument_of(schema, arguments, result));
  }
  torch::jit::drop(*stack, count);
  for (auto& result : results) stack->push_back(std::move(result));
}

}  // namespace

Use use_of(const at::Tensor& tensor, bool writes) {
  std::int64_t span = 1;
  for (std::int64_t d = 0; d < tensor.dim(); ++d) span += (tensor.size(d) - 1) * tensor.stride(d);
  if (tensor.numel() == 0) span = 0;
  const auto element = static_cast<std::int64_t>(tensor.itemsize());
  return {tensor.const_data_ptr(), static_cast<std::size_t>(span * element), std::min(tensor.numel(), span) * element,
          writes};
}

at::Tensor inside_view(const at::Tensor& tensor, int device) {
  TORCH_CHECK(!tensor.is_conj() && !tensor.is_neg(), "simulated device: lazy conjugates are not known");
  const auto options = tensor.options().device(at::kCPU).pinned_memory(false);
  if (tensor.numel() == 0) return at::empty_strided(tensor.sizes(), tensor.strides(), options);
  void* data = Machine::get().inside(tensor.const_data_ptr(), device);
  TORCH_CHECK(data != nullptr, "simulated device: the memory at ", tensor.const_data_ptr(), " of a tensor on ",
              tensor.device(), " is neither memory of simulated:", device, " nor page-locked");
  return at::from_blob(data, tensor.sizes(), tensor.strides(), options);
}

void prefer_cpu_kernels() {
  static torch::Library library(torch::Library::IMPL, "aten", c10::DispatchKey::PrivateUse1, __FILE__, __LINE__);
  auto& dispatcher = c10::Dispatcher::singleton();
  for (const auto& name : dispatcher.getAllOpNames()) {
    const auto op = dispatcher.findSchema(name);
    if (!op || !name.getNamespace() || *name.getNamespace() != "aten") continue;
    const auto has = [&](c10::DispatchKey key) { return op->hasKernelForDispatchKey(key); };
    const bool composite =
        has(c10::DispatchKey::CompositeExplicitAutograd) || has(c10::DispatchKey::CompositeImplicitAutograd);
    if (!composite || !has(c10::DispatchKey::CPU) || has(c10::DispatchKey::PrivateUse1)) continue;
    library.impl(toString(name).c_str(), torch::CppFunction::makeFromBoxedFunction<&fallback>());
  }
  for (const char* name : {"convolution", "convolution_backward"}) {
    library.impl(name, torch::CppFunction::makeFromBoxedFunction<&fallback>());
  }
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }

}  // namespace simulated_device
