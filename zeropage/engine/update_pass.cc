#include "zeropage/engine/update_pass.h"

#include <algorithm>
#include <utility>

#include "zeropage/comm/c10d/c10d_buffers.h"

namespace zeropage::engine {

UpdatePass::UpdatePass(const ModelState& state, const reduce::Reducer& reducer, c10::Device device,
                       memory::MemoryPlace host, const std::shared_ptr<Ledger>& ledger, CopiedPages copied_pages)
    : state_(state), reducer_(reducer), staging_(state, reducer, device, host, ledger, copied_pages) {}

std::vector<int> UpdatePass::begin(std::vector<int> pages, const std::vector<int>& with_gradients) {
  pages = state_.state_store().begin_pass(std::move(pages));
  if (reducer_.disk() != nullptr && !with_gradients.empty()) {
    std::vector<int> read = pages;
    std::erase_if(read, [&](int page) { return !std::ranges::binary_search(with_gradients, page); });
    reducer_.disk()->read_ahead(read);
  }
  return pages;
}

void UpdatePass::end() {
  staging_.wait_all();
  state_.state_store().end_pass();
}

bool UpdatePass::is_in_place(int page) const {
  return state_.state_store().is_in_place(page) && !staging_.is_copied(page) && !state_.pager().on_disk(page) &&
         !reducer_.on_disk(page);
}

const void* UpdatePass::kept_gradient(int page, int parameter) const {
  if (!reducer_.keeps(page)) return nullptr;
  const at::Tensor& gradient = reducer_.kept(parameter);
  comm::note_use(gradient);  // it was written on the backward's stream, and is read on this one
  return gradient.const_data_ptr();
}

HeldArrays::HeldArrays(UpdatePass& pass, int page, ParameterUse use, Access states, GradientUse gradient)
    : place_(pass.staging_.wait(page)), held_(pass.state_.state_store(), page, states) {
  const ModelState& state = pass.state_;
  const reduce::Reducer& reducer = pass.reducer_;
  auto* master = held_.arrays().master;
  const DType dtype = state.layout()->pages()[page].dtype;
  if (state.pager().on_disk(page) && (use != ParameterUse::kRead || dtype == DType::kFloat32)) {
    parameter_.emplace(state, page, use == ParameterUse::kRead ? Access::kRead : Access::kWrite,
                       use == ParameterUse::kReplaced ? io::Fill::kZeros : io::Fill::kRead);
    place_.parameter = parameter_->data();
  }
  if (dtype == DType::kFloat32) master = reinterpret_cast<float*>(place_.parameter);
  if (gradient == GradientUse::kRead && reducer.on_disk(page)) {
    gradient_.emplace(*reducer.disk(), page, /*changes=*/false);
    place_.gradient = gradient_->data();
  }
  const auto sum = reducer.gradient(page);
  gradient_in_place_ = place_.gradient == sum.data;
  arrays_ = {.master = master,
             .states = held_.arrays().states,
             .state_dtype = held_.arrays().dtype,
             .packed = held_.arrays().packed,
             .gradient = place_.gradient,
             .gradient_dtype = sum.dtype,
             .parameter = place_.parameter,
             .parameter_dtype = dtype};
}

}  // namespace zeropage::engine
