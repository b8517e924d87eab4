/// \file
/// Moves gradients from autograd to the update.
///
///   1. When a parameter's gradient is ready, it is moved into its page's gradient frame and `p.grad` is dropped. A
///      sharded page (stages 2 and 3) acquires a frame when it needs one; a whole page (stages 0 and 1) has its own, in
///      which micro batches add up.
///   2. In a backward that reduces (every backward for sharded pages, otherwise that of a boundary micro step), a
///      complete page is reduced while the backward continues: into this rank's fp32 shard, or in place. Pages are
///      reduced in one order that all ranks share (first reverse layout order, then the order in which rank 0's first
///      such backward completed them), each as soon as it and those before it are complete. A rank waits only for
///      reductions a few pages back in that order (for none if whole pages are reduced in shared memory), so the
///      slowest rank can always continue.
///   3. At the end of such a backward the rest of the order is reduced, with zeros for pages without gradients in this
///      rank's graph: then all ranks have started the same reductions, even with different graphs. Then they exchange
///      which pages still have gradients (if more arrived after the page's reduction: a tied weight in two reentrant
///      segments), and reduce those. A page without gradients on any rank for some backwards leaves the order until it
///      gets some, which are then reduced in this last round.
///   4. Gradients that arrive after their page's reduction use a separate frame, and their sum is added to the page's.
///   5. If there is one rank and no gradients add up (ReducePolicy::keep), they stay in autograd's tensors, without a
///      frame or shard. A page that gets more gradients, or whose sum is needed in one piece, is handled like the
///      others from then on.
///   6. Whole pages that no backward reduced (no overlap, or a backward run by the program) are exchanged and reduced
///      by `finish`, after the last backward of an accumulation window or before the update.
///   7. Gradients without a frame wait as private fp32 sums until the next exchange of 3., which also includes the
///      pages of such gradients. They are gradients of pages that were not trained so far (an unfrozen layer): all
///      ranks then begin to train such a page. Or they are second gradients when whole 16-bit frames only store first
///      ones: all ranks then use 32-bit frames from then on.
///   8. Gradients that stayed in `p.grad` because no hook was called (the parameter got another AccumulateGrad node
///      after the forward, or the program wrote `p.grad` itself) are taken when a backward begins, when it ends, and by
///      `finish`.
///   9. The exchange after the last backward of a window also includes which parameters have received a gradient on any
///      rank.
///
/// The first collective of each backward is compared with the peers'; the later ones follow from it and are not
/// compared.
///
/// Sums over ranks are computed in fp32 in rank order. The update divides by the world size. On the host the squares
/// for the global norm are summed when the last write of a gradient is still in the cache; see `squares`.
///
/// Locks. `mutex_` guards all of this while a gradient arrives, on whatever thread autograd uses; the other functions
/// run between backwards. It is held while reductions are started and waited for: all ranks start them in one order.
/// This cannot deadlock: no peer needs it for its part of a reduction, and waits end by a timeout. Listeners are called
/// while it is held; they may take the pager's mutex and that of Speculation, which never wait for this one.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <array>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "zeropage/comm/communicator.h"
#include "zeropage/io/page_cache.h"
#include "zeropage/layout/layout.h"
#include "zeropage/memory/device_buffer.h"
#include "zeropage/paging/stream_order.h"
#include "zeropage/reduce/backward_state.h"
#include "zeropage/reduce/gradient_frames.h"
#include "zeropage/reduce/gradient_hooks.h"
#include "zeropage/reduce/gradient_shards.h"
#include "zeropage/reduce/norm_accumulator.h"
#include "zeropage/reduce/policy.h"
#include "zeropage/reduce/reduction_order.h"
#include "zeropage/reduce/sum_state.h"

namespace zeropage::reduce {

/// A page's summed gradient: elements [begin, begin + numel) of the page start at `data`, which is null if they are on
/// the drive, or kept parameter by parameter.
struct ReducedGradient {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
  c10::Device device = c10::kCPU;
};

class Reducer {
 public:
  /// Hooks every parameter of `layout` that an optimizer has; parameters[i] belongs to layout->parameters()[i].
  Reducer(std::shared_ptr<const layout::Layout> layout, std::vector<at::Tensor> parameters,
          std::shared_ptr<comm::Communicator> communicator, c10::Device device, std::shared_ptr<Ledger> ledger,
          const ReducePolicy& policy);
  ~Reducer();

  /// From now on: calls `sum_ready(page)` when a page's sum is complete on this rank (on a device: in the order of the
  /// current stream), and `sum_invalidated(page)` before that sum changes or is dropped; both on the threads of
  /// backwards. With listeners a single rank's whole pages are complete as soon as their gradients are, too.
  void listen(std::function<void(int page)> sum_ready, std::function<void(int page)> sum_invalidated);

  /// From now on calls `begins(pages)`, in the middle of an exchange, when all ranks begin to train these pages: it
  /// makes them trainable in the layout, and may be collective.
  void on_pages_begin(std::function<void(const std::vector<int>& pages)> begins) { on_begins_ = std::move(begins); }

  /// From now on calls `left()` before it takes gradients that were left in `p.grad` outside of a backward; they are
  /// multiplied by its result. It may throw.
  void on_left_gradients(std::function<float()> left) { on_left_ = std::move(left); }

  /// Collective, between backwards: calls `begins`, and allocates memory for gradients of these pages.
  void begin_training(const std::vector<int>& pages);

  /// Adds the layout's new parameters. `offloaded`: of all pages, as in the policy. Collective, between updates;
  /// existing gradients are dropped.
  void add(const std::vector<at::Tensor>& parameters, const std::vector<bool>& offloaded);

  /// Replaces the parameter's tensor; undefined: it has none for now.
  void replace(int parameter, const at::Tensor& tensor);

  /// Before a forward: hooks the parameters' current AccumulateGrad nodes, on a device those of the current stream.
  void begin_forward();

  /// After a micro step: hooks nodes for forwards that bypass the engine.
  void end_step() { hooks_.install_early(parameters_, may_train_); }

  /// Before a backward. `boundary`: a step follows it, on every rank. `adds_up`: its gradients may be added to others
  /// of the same step (the same on all ranks). Collective the first time that it is true, if whole gradients were only
  /// stored.
  void begin_backward(bool boundary, bool adds_up = false);

  /// The same at the first gradient of a backward run by the program, which some ranks may not have: not collective,
  /// and whole gradients wait for its end. Its gradients are multiplied by `factor`.
  void begin_program_backward(bool boundary, float factor);

  /// After a backward. Collective when it reduced; before a step shards on the host are complete. Errors: PeerError,
  /// TimeoutError.
  void end_backward();

  /// Takes gradients that autograd, or the program, left in `p.grad`.
  void take_left_gradients();

  /// Before the global check: reduces everything that arrived. Collective. Includes end_backward for gradients of a
  /// backward that did not go through the engine.
  void finish();

  /// This rank's part of a page's sum after `finish`: the whole page when whole_result, else its shard. Null or zeros
  /// if no parameter of the page received a gradient on any rank.
  ReducedGradient gradient(int page) const;

  /// Whether a page's gradients are kept in autograd's tensors; a parameter's gradient then has the parameter's
  /// strides, and is undefined if none arrived.
  bool keeps(int page) const { return pages_[page].keeps; }
  const at::Tensor& kept(int parameter) const { return kept_[parameter]; }

  /// optim::SquareSum of each segment of this rank's shard of the page's sum (also where it has the whole sum), in the
  /// order of Layout::shard_segments, after `finish`. Empty if there is no sum, and without policy.squares. On a device
  /// those of all pages are fetched by the first call, which waits. Errors: as comm::poll_until.
  std::vector<double> squares(int page);

  /// Whether this rank has a sum of the page.
  bool has_sum(int page) const { return pages_[page].has_sum(); }

  /// Calls `read(sum)` with this rank's part of a page's sum, flat in its type; only where has_sum.
  void read_sum(int page, const std::function<void(const at::Tensor& sum)>& read);

  /// True when sums of peers can be read without their help.
  bool peers_readable(int page) const { return !on_disk(page) && shards_.is_shared(page); }

  /// The same for a peer's part, a shard; only if peers_readable, and while the peer has a complete sum and does not
  /// change it.
  void read_peer_sum(int page, int rank, const std::function<void(const at::Tensor& sum)>& read) const;

  /// Like read_sum, to change it: squares are summed again, and listeners are notified. A missing sum counts as zeros.
  /// Between a backward that reduced (or `finish`) and the step. Errors: IoError.
  void edit_sum(int page, const std::function<void(const at::Tensor& sum)>& edit);

  /// Whether a parameter counts as one that received a gradient; the same on all ranks.
  void set_received(int parameter, bool received);

  /// Parameters that received a gradient on any rank since the last reset; after a backward that is followed by a step,
  /// or `finish`.
  const std::vector<bool>& received_anywhere() const { return received_anywhere_; }

  /// True when this rank has sums of whole pages.
  bool has_whole_sum() const { return communicator_->size() == 1 || (!policy_.sharded && policy_.whole_result); }

  /// From now on `callback()` is called before autograd adds to any parameter's gradient. It may throw, on the thread
  /// of that backward.
  void before_gradients(std::function<void()> callback) { before_gradients_ = std::move(callback); }

  /// The drive with shards, for readers between backwards; null: none.
  io::PageCache* disk() const { return policy_.disk.get(); }
  bool on_disk(int page) const { return policy_.on_disk(page); }

  /// Parameters that received a gradient on this rank since the last reset.
  const std::vector<bool>& received_since_reset() const { return received_since_reset_; }

  /// True when anything arrived since the last reset.
  bool anything_arrived() const { return anything_arrived_; }

  /// Drops all gradients: the next one starts a new sum.
  void reset();

  /// Frees the buffers of gradients on the device, which must be empty; `reload` allocates them again. Collective.
  void unload();
  void reload();

  /// Returns unused frames to the system.
  void trim() { frames_->trim(); }

 private:
  /// Pages that may be waiting for peers: one in reduction and the next one keep the transport busy.
  static constexpr std::size_t kMaxInFlight = 2;

  struct PageState {
    SumState sum = SumState::kNone;
    std::byte* frame = nullptr;    ///< [padded_numel, frame_dtype], receiving gradients: the page's own, or one of the
                                   ///< pool; null: the page has none at present
    std::byte* result = nullptr;   ///< [shard_numel or padded_numel, result_dtype]: the shard, or where in the page's
                                   ///< own frame the result is
    bool result_at_start = false;  ///< at the start of the page's own frame, not at this rank's shard of it
    DType result_dtype = DType::kFloat32;
    c10::Device result_device = c10::kCPU;
    paging::StreamOrder order;       ///< of the streams that write `frame`
    int in_frame = 0;                ///< parameters with a gradient in `frame`
    int arrived_this_backward = 0;   ///< parameters that got a gradient, or a further part, in this backward
    int expected = 0;                ///< parameters of the page
    bool has_new_gradients = false;  ///< this rank got some since the last exchange
    bool keeps = false;              ///< gradients are in `kept_`, not in frames
    std::string label;

    bool has_sum() const { return sum != SumState::kNone; }
  };
  static constexpr int kNoPage = -1;

  /// Page-locked host memory for one sum that is added on the host.
  struct Slot {
    std::unique_ptr<memory::DeviceBuffer> memory;
    bool busy = false;
  };

  struct InFlight {
    int page = kNoPage;  ///< the page whose sum is complete after it
    comm::WorkPtr work;
    std::function<void()> settle;  ///< called when `work` is complete; may be empty
    bool arrives = false;          ///< it is a copy from the device to the host, which needs no peer
  };

  SumState move_to(int page, SumState state);
  void move_backward_to(BackwardState state);
  bool reduces() const { return policy_.sharded || backward_ == BackwardState::kReducing; }
  void forget_sum(int page);
  void on_gradient(int parameter);
  bool must_defer(int parameter) const;
  void defer(int parameter, const at::Tensor& gradient);
  void reduce_deferred(const std::vector<int>& pages);
  void widen();
  void widen_page(int page, std::byte* frame, DType narrow, GradientFrames& old_frames);
  void describe(int page);
  void add_page(int page);
  void reserve_scratch(std::int64_t numel);
  void use_homes();
  void use_shards(bool offloaded);
  void add_gradient(int parameter, const at::Tensor& gradient, float scale);
  void write_to_frame(int parameter, const at::Tensor& gradient, bool first, float scale);
  std::vector<optim::SquaredPiece> squared_pieces(int page) const;
  const std::byte* summed_shard(int page) const;
  void square_before_copy(int page, const at::Tensor& shard);
  void square_where_it_is(int page);
  void square_again(int page, const at::Tensor& sum);
  bool stores_sums() const { return !policy_.sharded && communicator_->size() == 1 && device_.is_cpu(); }
  bool keep(int parameter, const at::Tensor& gradient);
  void note_arrival(int parameter);
  void gather_kept(int page);
  void require_one_piece(int page);
  void forget_kept(int page);
  bool start_kept_reduction(int page);
  void acquire_frame(int page);
  void reuse_sum_as_accumulator(int page);
  void complete_frame(int page);
  void zero_gaps(int page);
  void start_ready_reductions();
  void start_reduction(int page);
  bool start_sharded_reduction(int page, std::byte* frame, bool adds);
  bool start_whole_reduction(int page, std::byte* frame, bool adds);
  bool reduce_through_fp32(int page, std::byte* frame, bool adds);
  void retire(std::size_t keep);
  void retire_reductions(std::size_t keep);
  void complete(int page);
  void invalidate_sum(int page);
  void start_unchecked() {
    if (!unchecked_) unchecked_.emplace(*communicator_);
  }
  void reduce_rest();
  void forget_backward();
  std::byte* own_shard(int page) const;
  at::Tensor sum_view(int page, std::byte* data) const;
  bool reduces_into_shard(int page) const;
  void add_to_shard(int page, const at::Tensor& sum, bool adds);
  bool is_sent_to_host(int page) const;
  std::optional<c10::Event> event_after_sends() const;
  void send(int page, const at::Tensor& sum, bool adds);
  Slot& next_slot();
  void add_on_host(int page, std::byte* values, DType type);
  DType frame_dtype(int page) const { return policy_.dtype_of_frame(layout_->pages()[page]); }
  DType sent_dtype(int page) const { return policy_.sent_dtype(layout_->pages()[page]); }
  DType sum_dtype(int page) const { return policy_.sum_dtype(layout_->pages()[page]); }
  std::vector<std::string> exchange(const std::string& mine, std::string_view what);

  std::shared_ptr<const layout::Layout> layout_;
  std::vector<at::Tensor> parameters_;
  std::shared_ptr<comm::Communicator> communicator_;
  c10::Device device_;
  std::shared_ptr<Ledger> ledger_;
  ReducePolicy policy_;
  std::vector<PageState> pages_;
  ReductionOrder order_;
  NormAccumulator norms_;
  std::unique_ptr<GradientFrames> frames_;
  GradientShards shards_;
  std::unique_ptr<memory::DeviceBuffer> scratch_;  // [shard_numel], fp32: a sum before it is added to its shard
  paging::StreamOrder scratch_order_;
  std::optional<c10::Stream> send_stream_;  // of sums that are copied to the host
  std::array<Slot, 2> slots_;
  std::size_t next_slot_ = 0;
  std::vector<at::Tensor> kept_;  // per parameter, in its layout
  std::vector<std::unique_ptr<memory::DeviceBuffer>>
      gathered_;                // per page: its shard, if the policy is to keep and this page no longer keeps
  std::vector<bool> in_frame_;  // per parameter: the page's frame has its gradient
  std::vector<bool> arrived_this_backward_;  // per parameter: a part of its gradient arrived
  std::vector<bool> received_since_reset_;
  std::vector<bool> received_anywhere_;
  std::deque<InFlight> in_flight_;
  std::optional<comm::UncheckedScope> unchecked_;  // from the first reduction of a backward to the last
  std::function<void(int page)> on_sum_ready_;
  std::function<void(int page)> on_sum_invalidated_;
  std::function<void(const std::vector<int>& pages)> on_begins_;
  std::function<float()> on_left_;
  std::vector<at::Tensor> deferred_;  // per parameter: the fp32 sum of gradients that have no frame; mostly undefined
  paging::StreamOrder deferred_order_;
  LedgerEntry deferred_entry_;
  std::vector<bool> may_train_;  // per parameter: whether an optimizer has it
  BackwardState backward_ = BackwardState::kNone;
  bool boundary_ = false;  // a step follows this backward
  float factor_ = 1.0f;    // the factor of its gradients
  std::function<void()> before_gradients_;
  bool anything_arrived_ = false;
  std::mutex mutex_;
  GradientHooks hooks_;
};

}  // namespace zeropage::reduce
