#include "zeropage/paging/fallback.h"

#include "zeropage/memory/torch_config.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>
#include <ATen/ops/add.h>
#include <ATen/ops/zeros.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

#include <mutex>
#include <optional>

#include "zeropage/base/error.h"
#include "zeropage/base/host_error.h"
#include "zeropage/paging/parameter_link.h"
#include "zeropage/paging/pinned_pages.h"

namespace zeropage::paging {
namespace {

std::atomic<std::int64_t> fallback_calls{0};  // for the self-test
thread_local std::shared_ptr<ResultWatcher> watcher_of_thread;

void use_value(const c10::IValue& value, bool writes, const c10::OperatorHandle& op, PinnedPages& pages) {
  if (value.isTensor()) {
    pages.use(value.toTensor(), writes, op.schema().name());
  } else if (value.isTensorList()) {
    for (const at::Tensor& tensor : value.toTensorVector()) pages.use(tensor, writes, op.schema().name());
  } else if (value.isList()) {
    for (const auto& element : value.toListRef()) use_value(element, writes, op, pages);
  }
}

bool writes_argument(const c10::Argument& argument) {
  return argument.alias_info() != nullptr && argument.alias_info()->isWrite();
}

bool only_makes_views(const c10::FunctionSchema& schema) {
  for (const auto& argument : schema.arguments()) {
    if (writes_argument(argument)) return false;
  }
  for (const auto& result : schema.returns()) {
    if (result.alias_info() == nullptr) return false;
  }
  return !schema.returns().empty();
}

bool under_functorch() {
  return c10::impl::tls_local_dispatch_key_set().included_.has(c10::DispatchKey::FuncTorchDynamicLayerFrontMode);
}

bool has_one_owner(const at::Tensor& tensor) {
  return tensor.defined() && tensor.use_count() == 1 && tensor.unsafeGetTensorImpl()->has_storage() &&
         tensor.unsafeGetTensorImpl()->unsafe_storage().use_count() == 1;
}

void show_results(ResultWatcher& watcher, const c10::FunctionSchema& schema, const torch::jit::Stack& stack) {
  for (const auto& value : torch::jit::last(stack, schema.returns().size())) {
    if (value.isTensor() && has_one_owner(value.toTensor())) watcher.take(value.toTensor(), schema.name());
  }
}

void parameter_fallback(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
  fallback_calls.fetch_add(1, std::memory_order_relaxed);
  const auto& schema = op.schema();
  const auto below = keys & c10::DispatchKeySet(c10::DispatchKeySet::FULL_AFTER, kParameterKey);
  if (only_makes_views(schema)) {
    op.redispatchBoxed(below, stack);
    return;
  }
  PinnedPages pages;
  const auto& arguments = schema.arguments();
  const auto values = torch::jit::last(*stack, arguments.size());
  try {
    for (std::size_t i = 0; i < arguments.size(); ++i) use_value(values[i], writes_argument(arguments[i]), op, pages);
  } catch (const Error&) {
    rethrow_for_host();
  }
  std::optional<c10::impl::ExcludeDispatchKeyGuard> inside;
  if (!under_functorch()) inside.emplace(kParameterKey);
  op.redispatchBoxed(below, stack);
  if (!watcher_of_thread || under_functorch()) return;
  try {
    show_results(*watcher_of_thread, schema, *stack);
  } catch (const Error&) {
    rethrow_for_host();
  }
}

void self_test() {
  auto probe = at::zeros({1});
  mark(probe);
  const auto before = fallback_calls.load();
  (void)at::add(probe, probe);
  if (fallback_calls.load() == before) {
    throw Error(
        "this build of torch does not dispatch operators on the parameter key (DeferredInit), so parameters cannot be "
        "paged; use torch 2.11 or newer, unmodified");
  }
}

}  // namespace

void ensure_fallback() {
  static std::once_flag once;
  std::call_once(once, [] {
    // Never destroyed: operators on parameters may run until the process ends.
    static auto* library = new torch::Library(torch::Library::IMPL, "_", kParameterKey, __FILE__, __LINE__);
    library->fallback(torch::CppFunction::makeFromBoxedFunction<&parameter_fallback>());
    self_test();
  });
}

std::shared_ptr<ResultWatcher> results_watcher() { return watcher_of_thread; }

void watch_results(std::shared_ptr<ResultWatcher> watcher) {
  watcher_of_thread = std::move(watcher);
  c10::impl::tls_set_dispatch_key_included(kParameterKey, watcher_of_thread != nullptr);
}

}  // namespace zeropage::paging
