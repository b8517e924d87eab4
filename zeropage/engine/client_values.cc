#include "zeropage/engine/client_values.h"

#include <c10/core/GradMode.h>

#include <algorithm>
#include <exception>

#include "zeropage/base/error.h"
#include "zeropage/checkpoint/exchange.h"
#include "zeropage/engine/page_update.h"

namespace zeropage::engine {

ClientValues::ClientValues(UpdatePass& pass, const std::vector<bool>& received, float gradient_scale,
                           const std::shared_ptr<Ledger>& ledger)
    : ledger_(ledger), values_(pass.state().layout()->pages().size()) {
  c10::AutoGradMode no_grad(false);
  const ModelState& state = pass.state();
  const auto has_gradient = [&](int parameter) { return !received.empty() && received[parameter]; };
  const auto with_gradients = received.empty() ? std::vector<int>{} : updated_pages(*state.layout(), received);
  const auto pages = pass.begin(trained_pages(*state.layout()), with_gradients);
  for (const int page : pages) {
    const auto& own = state.owned(page);
    const bool any_gradient = std::ranges::binary_search(with_gradients, page);
    pass.fetch(page);
    const HeldArrays held(pass, page, ParameterUse::kRead, Access::kRead,
                          any_gradient ? GradientUse::kRead : GradientUse::kNone);
    const memory::MemoryPlace place(held.device(), state.offloaded()[page] ? Tier::kHost : Tier::kDevice);
    const auto& arrays = held.arrays();
    values_[page] = buffer(own.numel, place);
    values_[page].copy_(memory::flat_view(arrays.master, own.numel, at::kFloat, held.device()));
    at::Tensor gradient;
    if (any_gradient) {
      gradient = memory::flat_view(const_cast<void*>(arrays.gradient), own.numel, scalar_type_of(arrays.gradient_dtype),
                                   held.device());
      const bool may_be_overwritten = held.gradient_in_place() && arrays.gradient_dtype == DType::kFloat32;
      if (!may_be_overwritten) gradient = buffer(own.numel, place).copy_(gradient);
      gradient.mul_(gradient_scale);
    }
    for (const auto& piece : pieces_of(*state.layout(), page, own.begin, own.begin + own.numel)) {
      segments_.push_back(
          {piece.parameter, values_[page].narrow(0, piece.offset, piece.numel),
           has_gradient(piece.parameter) ? gradient.narrow(0, piece.offset, piece.numel) : at::Tensor()});
    }
    pass.write_back(page, {});
  }
  pass.end();
}

at::Tensor ClientValues::buffer(std::int64_t numel, const memory::MemoryPlace& place) {
  buffers_.push_back(std::make_unique<memory::DeviceBuffer>(numel * 4, place, ledger_, MemoryKind::kBuffers));
  return memory::flat_view(buffers_.back()->data(), numel, at::kFloat, place.device);
}

std::vector<int> trained_pages(const layout::Layout& layout) {
  std::vector<int> pages;
  for (const auto& page : layout.pages()) {
    if (page.trainable) pages.push_back(page.index);
  }
  return pages;
}

void run_on_all_ranks(comm::Communicator& communicator, const std::string& what, const std::function<void()>& work) {
  std::exception_ptr thrown;
  std::string mine;
  try {
    work();
  } catch (const PeerError&) {
    throw;
  } catch (const TimeoutError&) {
    throw;
  } catch (const std::exception& error) {
    thrown = std::current_exception();
    mine = error.what();
    if (mine.empty()) mine = "an exception without a message";
  }
  try {
    require_success_everywhere(communicator, what, mine);
  } catch (const PeerError&) {
    if (thrown) std::rethrow_exception(thrown);
    throw;
  }
}

void require_success_everywhere(comm::Communicator& communicator, const std::string& what, const std::string& mine) {
  const auto failures = checkpoint::lines_of_failures(checkpoint::exchange_strings(communicator.job(), mine));
  if (!failures.empty()) throw PeerError(what + failures);
}

}  // namespace zeropage::engine
