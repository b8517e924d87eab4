// Users' access to full parameters, and to values of parameters.
#include <fmt/format.h>

#include <mutex>
#include <utility>
#include <vector>

#include "zeropage/base/error.h"
#include "zeropage/engine/engine_impl.h"

namespace zeropage::engine {
namespace {

std::mutex tickets_mutex;  // of all engines: scopes may be opened and ended on several threads

}  // namespace

void Engine::Impl::release(std::int64_t ticket, int modifier_rank) {
  if (modifier_rank >= 0 && !parameters_only_) require_whole_state("release");
  std::set<int> pages;
  {
    const std::scoped_lock lock(tickets_mutex);
    const auto found = tickets_.find(ticket);
    if (found == tickets_.end())
      throw UsageError(fmt::format("gather ticket {} is not open; release each ticket once", ticket));
    pages = std::move(found->second);
    tickets_.erase(found);
  }
  auto& pager = state_.pager();
  for (int page : pages) {
    if (modifier_rank >= 0) {
      std::byte* data = pager.paged(page) ? pager.frame(page) : state_.whole_page(page);
      job()
          .broadcast(data, state_.layout()->pages()[page].padded_bytes(), modifier_rank,
                     comm::Tag{"parameters modified by one rank", page})
          ->wait();
      pager.paged(page) ? pager.mark_dirty(page) : pager.note_write(page);
    }
    if (pager.paged(page)) pager.unpin_of_scope(page);
  }
}

ParameterValues& Engine::values() {
  impl_->require_whole_state("values");
  return *impl_->values_;
}

std::int64_t Engine::gather(const std::vector<at::Tensor>& parameters) {
  if (!impl_->parameters_only_) impl_->offloader_->require_resident("gather");
  impl_->state_.adopt_replaced_data();
  auto& pager = impl_->state_.pager();
  std::set<int> pages;
  for (const auto& parameter : parameters) {
    const auto* link = paging::link_of(parameter.unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl());
    if (link == nullptr || link->handle != pager.handle()) {
      throw UsageError("gather() got a tensor that is not a parameter of this engine");
    }
    pages.insert(link->page);
  }
  std::vector<int> kept;
  try {
    for (const int page : pages) {
      if (!pager.paged(page)) continue;
      pager.touch_for_scope(page, "gathered parameters");
      kept.push_back(page);
    }
  } catch (...) {
    for (const int page : kept) pager.unpin_of_scope(page);
    throw;
  }
  const std::scoped_lock lock(tickets_mutex);
  impl_->tickets_[impl_->next_ticket_] = std::move(pages);
  return impl_->next_ticket_++;
}

void Engine::add_parameters(const std::vector<ParameterInput>& inputs,
                            const std::vector<config::OptimizerParams>& groups) {
  impl_->require_whole_state("add_parameters");
  if (!impl_->window_.is_new() || impl_->reducer_->anything_arrived()) {
    throw UsageError("add_parameters() was called in the middle of an update; call it after the step() that ends one");
  }
  std::set<std::string> names;
  for (const auto& spec : impl_->state_.layout()->parameters()) names.insert(spec.name);
  std::string facts;
  for (const auto& input : inputs) {
    if (!names.insert(input.name).second) {
      throw UsageError(fmt::format("add_parameters() got '{}', which the engine already has", input.name));
    }
    facts += fmt::format("added {} numel={} group={} {}\n", input.name, input.tensor.numel(), input.group,
                         input.tensor.requires_grad() ? "trainable" : "frozen");
  }
  require_same_everywhere(*impl_->communicator_, facts);
  require_states(impl_->config_.optimizer, groups);
  impl_->add_parameters(inputs, groups);
}

void Engine::Impl::add_parameters(const std::vector<ParameterInput>& inputs,
                                  const std::vector<config::OptimizerParams>& groups) {
  state_.add(inputs);
  std::vector<at::Tensor> tensors;
  for (const auto& input : inputs) tensors.push_back(input.tensor);
  reducer_->add(tensors, state_.offloaded());
  update_pass_->grow();
  speculation_->grow();
  steps_.resize(state_.tensors().size());
  for (std::size_t i = groups_.size(); i < groups.size(); ++i) {
    groups_.push_back(groups[i]);
    if (schedule_) schedule_->add_group(groups[i].lr);
  }
  if (schedule_) take_scheduled();
  if (config_.zeropage.observe_functions && state_.anything_paged() && !observer_) {
    observer_ = std::make_unique<paging::FunctionObserver>();
  }
}

void Engine::make_parameters_whole() {
  if (!impl_->parameters_only_) impl_->offloader_->move_back();
  impl_->state_.make_whole();
}

void Engine::drop_tensor(int parameter) {
  if (!impl_->parameters_only_) {
    impl_->offloader_->require_resident("swap_tensors");
    impl_->reducer_->replace(parameter, at::Tensor());
  }
  impl_->state_.drop_tensor(parameter);
}

void Engine::set_tensor(int parameter, const at::Tensor& tensor) {
  impl_->state_.set_tensor(parameter, tensor);
  if (!impl_->parameters_only_) impl_->reducer_->replace(parameter, tensor);
}

void Engine::keep_parameters_only() { impl_->keep_parameters_only(); }

void Engine::Impl::keep_parameters_only() {
  if (std::exchange(parameters_only_, true)) return;
  offloader_->move_back();
  wait_until_idle();
  background_save_.reset();
  run_.reset();  // another engine may save into the folder
  // Objects that refer to others are freed first.
  values_.reset();
  gradients_.reset();
  offloader_.reset();
  speculation_.reset();
  update_pass_.reset();
  reducer_.reset();
  self_.reset();
  state_.keep_parameters_only();
}

void Engine::release(std::int64_t ticket, int modifier_rank) { impl_->release(ticket, modifier_rank); }
}  // namespace zeropage::engine
