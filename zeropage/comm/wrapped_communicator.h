/// \file
/// The common base of communicators that wrap another one: the calls that they do not change.
#pragma once

#include <functional>
#include <memory>
#include <string_view>
#include <utility>

#include "zeropage/comm/communicator.h"

namespace zeropage::comm {

/// Forwards everything except the collectives that every communicator has.
class WrappedCommunicator : public Communicator {
 public:
  explicit WrappedCommunicator(std::shared_ptr<Communicator> inner) : inner_(std::move(inner)) {}

  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  /// Calls for all ranks go through this wrapper, too, unless they need another communicator.
  Communicator& job() override {
    Communicator& job = inner_->job();
    return &job == inner_.get() ? *this : job;
  }
  std::unique_ptr<Memory> allocate(std::int64_t bytes, std::string_view label) override {
    return inner_->allocate(bytes, label);
  }
  bool owns_memory() const override { return inner_->owns_memory(); }
  bool one_sided() const override { return inner_->one_sided(); }
  const std::byte* peer_address(int rank, const void* local) const override {
    return inner_->peer_address(rank, local);
  }
  int nearby_size() const override { return inner_->nearby_size(); }
  std::unique_ptr<Memory> allocate_nearby(std::int64_t bytes, std::string_view label) override {
    return inner_->allocate_nearby(bytes, label);
  }
  bool sums_by_hosts() const override { return inner_->sums_by_hosts(); }
  WorkPtr reduce_scatter_in_codes(const void* whole, void* out, std::int64_t shard_numel, DType in_dtype,
                                  DType out_dtype, bool accumulate, Tag tag, OnReduced on_reduced,
                                  const SumCodec& codec) override {
    return inner_->reduce_scatter_in_codes(whole, out, shard_numel, in_dtype, out_dtype, accumulate, tag,
                                           std::move(on_reduced), codec);
  }
  void wait_until(const std::function<bool()>& ready, int waiting_for, std::string_view what) override {
    inner_->wait_until(ready, waiting_for, what);
  }
  void throw_if_aborted() override { inner_->throw_if_aborted(); }
  std::chrono::milliseconds timeout() const override { return inner_->timeout(); }
  void notify() override { inner_->notify(); }
  void set_checking(bool checking) override { inner_->set_checking(checking); }
  void abort(std::string_view reason) override { inner_->abort(reason); }
  std::int64_t bytes_moved() const override { return inner_->bytes_moved(); }
  std::int64_t bytes_between_hosts() const override { return inner_->bytes_between_hosts(); }

 protected:
  std::shared_ptr<Communicator> inner_;
};

}  // namespace zeropage::comm
