#include "zeropage/paging/function_observer.h"

#include <ATen/record_function.h>

#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "zeropage/paging/pager.h"

namespace zeropage::paging {
namespace {

struct PageUse {
  std::shared_ptr<PagerHandle> handle;
  int page = 0;
};
using PageUses = std::vector<PageUse>;

thread_local bool pass_by_next = false;

/// Process-wide, because RecordFunction callbacks are plain functions.
struct ObserverState {
  std::mutex mutex;
  int users = 0;
  at::CallbackHandle callback{};
  std::map<std::pair<std::uint64_t, std::int64_t>, PageUses> forwards;  // (thread, sequence number) -> pages
};

ObserverState& observer_state() {
  static auto* state = new ObserverState;  // callbacks may run until the process ends
  return *state;
}

/// Pins pages while the function runs.
struct PinContext : at::ObserverContext {
  explicit PinContext(PageUses uses, const char* user) {
    for (auto& use : uses) {
      PageTable* pager = use.handle->pager.load();
      if (pager == nullptr) continue;
      try {
        pager->touch(use.page, /*writes=*/false, user);
        pinned.push_back(use);
      } catch (const std::exception& error) {
        pager->explain_absence(use.page, error.what());
      }
    }
  }
  ~PinContext() override {
    for (auto& use : pinned) {
      if (PageTable* pager = use.handle->pager.load()) pager->unpin(use.page);
    }
  }
  PageUses pinned;
};

PageUses pages_of(c10::ArrayRef<const c10::IValue> inputs) {
  PageUses uses;
  for (const auto& value : inputs) {
    if (!value.isTensor()) continue;
    const at::Tensor& tensor = value.toTensor();
    if (!tensor.defined() || !is_marked(tensor) || !tensor.unsafeGetTensorImpl()->has_storage()) continue;
    ParameterLink* link = link_of(tensor.unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl());
    if (link != nullptr && link->paged) uses.push_back({link->handle, link->page});
  }
  return uses;
}

std::unique_ptr<at::ObserverContext> on_start(const at::RecordFunction& function) {
  auto& state = observer_state();
  if (function.scope() == at::RecordScope::BACKWARD_FUNCTION) {
    PageUses uses;
    {
      std::lock_guard<std::mutex> lock(state.mutex);
      auto found = state.forwards.find({function.forwardThreadId(), function.seqNr()});
      if (found == state.forwards.end()) return nullptr;
      uses = found->second;
    }
    return std::make_unique<PinContext>(std::move(uses), function.name());
  }
  // Operators (the fallback handles them) have a name, and torch's other manual records have no sequence number.
  if (function.operator_name().has_value() || function.seqNr() < 0) return nullptr;
  if (std::exchange(pass_by_next, false)) return nullptr;
  PageUses uses = pages_of(function.inputs());
  if (uses.empty()) return nullptr;
  for (auto& use : uses) use.handle->functions_seen.store(true);
  {
    std::lock_guard<std::mutex> lock(state.mutex);
    state.forwards[{at::RecordFunction::currentThreadId(), function.seqNr()}] = uses;
  }
  return std::make_unique<PinContext>(std::move(uses), function.name());
}

void on_end(const at::RecordFunction&, at::ObserverContext*) {
  // The context's destructor unpins; torch destroys it right after this.
}

}  // namespace

FunctionObserver::FunctionObserver() {
  auto& state = observer_state();
  std::lock_guard<std::mutex> lock(state.mutex);
  if (state.users++ == 0) {
    state.callback =
        at::addGlobalCallback(at::RecordFunctionCallback(&on_start, &on_end)
                                  .needsInputs(true)
                                  .scopes({at::RecordScope::FUNCTION, at::RecordScope::BACKWARD_FUNCTION}));
  }
}

FunctionObserver::~FunctionObserver() {
  auto& state = observer_state();
  std::lock_guard<std::mutex> lock(state.mutex);
  if (--state.users == 0) at::removeCallback(state.callback);
}

bool FunctionObserver::saw_function(const PagerHandle& pager) { return pager.functions_seen.load(); }

void FunctionObserver::forget(const PagerHandle& pager) {
  auto& state = observer_state();
  std::lock_guard<std::mutex> lock(state.mutex);
  std::erase_if(state.forwards, [&](const auto& entry) { return entry.second.front().handle.get() == &pager; });
}

UnobservedFunction::UnobservedFunction() { pass_by_next = true; }

UnobservedFunction::~UnobservedFunction() { pass_by_next = false; }

PausedObserver::PausedObserver() : was_recording_(at::isRecordFunctionEnabled()) {
  auto& state = observer_state();
  std::lock_guard<std::mutex> lock(state.mutex);
  if (state.users > 0) at::enableRecordFunction(false);
}

PausedObserver::~PausedObserver() { at::enableRecordFunction(was_recording_); }

}  // namespace zeropage::paging
