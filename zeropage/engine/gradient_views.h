/// \file
/// `p.grad` as programs see it. Gradients are in the reducer's sums: in shards, in another type, and not divided yet.
/// Nevertheless, between the backward that completes an accumulation window and the step, every parameter has a tensor
/// as its gradient:
///
///   1. publish(): parameters that received a gradient on any rank get a tensor of their shape and type as `p.grad`.
///      Its storage carries a ParameterLink to this table, and is empty. Tensors and storages are made once: this sets
///      a pointer.
///   2. The first operator that touches a gradient faults, as with parameters (paging/fallback.h). The page's mean
///      gradient, without the loss scale, is written to a frame: from the sum if this rank has all of it, else from the
///      peers' shards if they can be read, else by a gather, which is collective. If the sum itself is the mean
///      gradient in the parameter's type (one rank, no loss scale), the storage points to the sum.
///   3. Frames stay, within the limit on live parameters: beyond it the least recently used frame is returned. Frames
///      with values written by operators stay until 4.
///   4. apply_user_writes(), before the step or another backward: written values become part of the sum, which keeps
///      its own precision in unchanged elements; assigned gradients (`p.grad = t`) do, too, and a dropped one (`p.grad
///      = None`) counts as not received. Then `p.grad` is None on all parameters. Ranks synchronize before the first
///      change of a sum that a peer may be reading; the written values must be the same on all of them.
///   5. Tensors that the program has kept get their values in separate memory; the next window has new tensors.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "zeropage/base/ledger.h"
#include "zeropage/comm/communicator.h"
#include "zeropage/engine/model_state.h"
#include "zeropage/paging/frame_pool.h"
#include "zeropage/paging/parameter_link.h"
#include "zeropage/paging/stream_order.h"
#include "zeropage/reduce/reducer.h"

namespace zeropage::engine {

class GradientViews final : public paging::PageTable {
 public:
  /// `max_live_bytes`: the limit of frames.
  GradientViews(ModelState& state, reduce::Reducer& reducer, comm::Communicator& communicator, c10::Device device,
                const std::shared_ptr<Ledger>& ledger, std::int64_t max_live_bytes);
  ~GradientViews();
  GradientViews(const GradientViews&) = delete;
  GradientViews& operator=(const GradientViews&) = delete;

  /// After a backward that completes a window; sums are divided by `divisor` to get means. Cost: some 20 ns per
  /// parameter.
  void publish(double divisor);
  bool is_published() const { return published_; }
  double divisor() const { return divisor_; }

  /// Collective if anything was written. Errors: PeerError and TimeoutError, also when ranks have written different
  /// gradients; UsageError for an assigned gradient of another shape.
  void apply_user_writes();

  /// The same, but gradients are dropped, including written values.
  void discard();

  /// While published: this rank's piece of a parameter's gradient as programs see it now, where `mean` is the sum's;
  /// undefined if they have dropped it. May return `mean` itself.
  at::Tensor current(int parameter, const StatePiece& place, const at::Tensor& mean) const;

  /// While published: called after the sum of a parameter's elements from `offset` on was set so that their mean is
  /// `flat`.
  void follow(int parameter, std::int64_t offset, const at::Tensor& flat);

  void touch(int page, bool writes, std::string_view user) override;
  void unpin(int page) override;
  void note_write(int page) override;
  void explain_absence(int page, const std::string& cause) override;

 private:
  struct Gradient {
    at::Tensor tensor;
    c10::Storage storage;
    std::string message;  ///< for raw accesses
    bool published = false;
  };
  struct Page {
    bool direct = false;  ///< its storages point to the sum
    bool written = false;
    int pins = 0;
    std::int64_t last_touch = 0;
    std::byte* frame = nullptr;
    paging::StreamOrder order;  ///< of those that use `frame`
    std::string label;
  };

  void make_gradients();
  void make_gradient(int parameter);
  void show_page(int page);
  bool points_to_sum(int page) const;
  bool is_resident(int page) const { return pages_[page].direct || pages_[page].frame != nullptr; }
  at::Tensor in_page(int page, std::int64_t begin, std::int64_t numel) const;
  void fill_frame(int page);
  void read_sums(int page);
  void read_peers(int page);
  void publish_generation(std::uint64_t generation);
  void make_room(std::int64_t bytes);
  void fill_storages(int page, std::byte* first);
  void drop_frame(int page);
  bool is_ours(int parameter) const;
  bool anything_changed() const;
  void merge(int page);
  void assign(int parameter, const at::Tensor& value);
  void withdraw();
  void hand_over(int parameter);
  std::int64_t frame_bytes(int page) const { return state_.layout()->pages()[page].padded_bytes(); }
  std::unique_lock<std::mutex> lock() const;

  ModelState& state_;
  reduce::Reducer& reducer_;
  comm::Communicator& communicator_;
  c10::Device device_;
  std::int64_t max_live_bytes_;
  std::int64_t live_bytes_ = 0;
  std::int64_t clock_ = 0;
  double divisor_ = 1.0;
  bool published_ = false;
  std::shared_ptr<paging::PagerHandle> handle_;
  std::unique_ptr<paging::FramePool> frames_;
  std::unique_ptr<comm::Memory>
      generation_cell_;              // tells peers that can read sums which of them are complete here; otherwise null
  std::uint64_t generation_ = 0;     // even: of a window; odd: its gradients were forgotten
  std::vector<Gradient> gradients_;  // per parameter
  std::vector<Page> pages_;
  mutable std::mutex mutex_;
};

}  // namespace zeropage::engine
