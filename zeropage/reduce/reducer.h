/// \file
/// Gradients on their way from autograd to the update.
///
///   1. When a parameter's gradient is ready it is moved into its page's gradient frame and `p.grad` is dropped. A
///      sharded page (stages 2 and 3) takes a frame when it needs one; a whole page (stages 0 and 1) has its own, in
///      which micro batches add up.
///   2. In a backward that reduces (any one when sharded, else that of a boundary micro step), a complete page is
///      reduced while the backward goes on: into this rank's fp32 shard, or in place. Pages are reduced in one order
///      that all ranks share (first reverse layout order, then the order in which rank 0's first such backward
///      completed them), each as soon as it and those before it are complete. A rank waits only for reductions that lie
///      a few pages back in that order (none, where whole pages are reduced in memory that ranks share), so the one
///      that is furthest behind can always go on.
///   3. At the end of such a backward what is left of the order is reduced, with zeros where this rank's graph gave
///      nothing: by then all ranks have started the same reductions, whatever their graphs. Then they exchange which
///      pages still hold gradients (more came after the page was reduced: a tied weight in two reentrant segments), and
///      reduce those. A page that no rank gave gradients for some backwards leaves the order, to be reduced in this
///      last round if it gets any, until it does.
///   4. Gradients that come to a page after its reduction stand in a frame of their own and their sum is added to the
///      page's.
///   5. Where one rank has all and no gradients add up (ReducePolicy::keep), they stay in the tensors that autograd
///      made: no frame, no shard. A page that gets more, or whose sum somebody wants in one piece, takes the way of the
///      others from then on.
///   6. Whole pages that no backward reduced (no overlap, or a backward that the program runs) are exchanged and
///      reduced by `finish`, after the last backward of an accumulation window or before the update.
///   7. Gradients that have no place wait as private fp32 sums until the next exchange of 3., which also says of which
///      pages some wait. These are of pages that were not trained so far (a layer that was unfrozen): all ranks begin
///      to train such a page. And second gradients where whole frames of 16 bit only store first ones: all ranks take
///      frames of 32 bit from then on.
///   8. What autograd left in `p.grad` because no hook saw it (the parameter got another AccumulateGrad node after the
///      forward, or the program wrote `p.grad` itself) is taken when a backward begins, when it ends, and by `finish`.
///   9. The exchange after the last backward of a window also says which parameters have received a gradient on any
///      rank.
///
/// The first collective of each backward is compared with the peers'; those after it follow from it and are not.
///
/// Sums over ranks are formed in fp32 in rank order. Division by the world size belongs to the update. On the host the
/// squares for the global norm are summed when the last writer of a gradient has just left it in the cache; see
/// `squares`.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <array>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "zeropage/comm/communicator.h"
#include "zeropage/io/page_cache.h"
#include "zeropage/layout/layout.h"
#include "zeropage/memory/device_buffer.h"
#include "zeropage/optim/norm.h"
#include "zeropage/paging/frame_pool.h"
#include "zeropage/paging/stream_order.h"
#include "zeropage/reduce/device_squares.h"
#include "zeropage/reduce/gradient_hooks.h"

namespace zeropage::reduce {

struct ReduceTypes {
  DType accumulation_dtype = DType::kFloat32;
  DType frame_dtype = DType::kFloat32;
};

struct ReducePolicy {
  bool sharded = false;        ///< stages 2 and 3: reduce in every backward, keep a shard
  bool whole_result = false;   ///< stage 0: every rank needs the sum of the whole page
  bool reduce_scatter = true;  ///< false: all-reduce, then slice
  bool keep = false;       ///< sharded, one rank: gradients of pages that stay on the device are left as they were made
  bool coded = false;      ///< gradients travel in blocks (coded_reductions.h): what lies between them must be zeros
  bool overlap = true;     ///< false: no reduction goes on beside a backward
  float pre_scale = 1.0f;  ///< multiplied into every gradient before it is summed (prescale_gradients)
  DType accumulation_dtype = DType::kFloat32;  ///< of whole frames, or of shards, where gradients add up
  DType frame_dtype = DType::kFloat32;         ///< of frames that travel (communication dtype)
  bool fp32_sums = false;                      ///< those of fp32 pages add up in fp32 whatever the type above,
  bool fp32_travel = false;                    ///< and travel in fp32
  std::optional<ReduceTypes> adding =
      {};                       ///< what these two become when whole gradients that were only stored add up after all
  std::vector<bool> offloaded;  ///< per page: its shard lives at `host`; empty: none does
  memory::MemoryPlace host = c10::Device(c10::kCPU);
  bool squares = true;                 ///< false: nobody asks for them, and none are summed
  bool squares_before_travel = false;  ///< a first sum is squared on its device before it travels to `host`

  /// Where the shards of the pages it has live instead; null: none do.
  std::shared_ptr<io::PageCache> disk = nullptr;
};

/// A page's summed gradient: elements [begin, begin + numel) of the page start at `data`, which is null when they are
/// on the drive, or kept parameter by parameter.
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
  /// current stream), and `sum_invalidated(page)` before that sum changes or is dropped; both on whatever thread a
  /// backward runs. With listeners a single rank's whole pages are complete as soon as their gradients are, too.
  void listen(std::function<void(int page)> sum_ready, std::function<void(int page)> sum_invalidated);

  /// From now on calls `begins(pages)`, in the middle of an exchange, when all ranks begin to train these pages: it
  /// makes them trainable in the layout, and may be collective.
  void on_pages_begin(std::function<void(const std::vector<int>& pages)> begins) { on_begins_ = std::move(begins); }

  /// From now on calls `left()` before it takes gradients that were left in `p.grad` outside of a backward; they are
  /// multiplied by what it returns. It may throw.
  void on_left_gradients(std::function<float()> left) { on_left_ = std::move(left); }

  /// Collective, between backwards: calls `begins`, and makes room for gradients of these pages.
  void begin_training(const std::vector<int>& pages);

  /// More parameters: those that the layout has got since. `offloaded`: of all pages, as in the policy. Collective,
  /// between updates; gradients in hand are forgotten.
  void add(const std::vector<at::Tensor>& parameters, const std::vector<bool>& offloaded);

  /// The parameter is another tensor from now on, or, undefined, for the moment none.
  void replace(int parameter, const at::Tensor& tensor);

  /// Before a forward: hooks the parameters' present AccumulateGrad nodes, on a device those of the present stream.
  void begin_forward();

  /// When a micro step has ended: hooks nodes for forwards that the engine is not told of.
  void end_step() { hook_early(); }

  /// Before a backward. `boundary`: a step follows it, on every rank. `adds_up`: its gradients may meet others of the
  /// same step (the same on all ranks). Collective the first time that is so, where whole gradients were only stored.
  void begin_backward(bool boundary, bool adds_up = false);

  /// The same at the first gradient of a backward that the program runs, which not all ranks need to have: not
  /// collective, and whole gradients wait for its end. Its gradients are multiplied by `factor`.
  void begin_program_backward(bool boundary, float factor);

  /// After a backward. Collective when it reduced; before a step shards on the host are complete. Errors: PeerError,
  /// TimeoutError.
  void end_backward();

  /// Takes what autograd, or the program, left in `p.grad`.
  void take_left_gradients();

  /// Before the global check: everything that arrived is reduced. Collective. Includes end_backward for gradients of a
  /// backward that did not go through the engine.
  void finish();

  /// This rank's part of a page's sum after `finish`: the whole page when whole_result, else its shard. Null or zeros
  /// when no parameter of the page received a gradient on any rank.
  ReducedGradient gradient(int page) const;

  /// Whether a page's gradients are kept as autograd made them; then that of a parameter is in the layout of the
  /// parameter, and undefined where none came.
  bool keeps(int page) const { return pages_[page].keeps; }
  const at::Tensor& kept(int parameter) const { return kept_[parameter]; }

  /// optim::SquareSum of each segment of this rank's shard of the page's sum (also where it has the whole sum), in the
  /// order of Layout::shard_segments, after `finish`. Empty where there is no sum, and without policy.squares. On a
  /// device those of all pages are
  /// fetched by the first call, which waits. Errors: as comm::poll_until.
  std::vector<double> squares(int page);

  /// Whether this rank has a sum of the page.
  bool has_sum(int page) const { return pages_[page].filled; }

  /// Calls `read(sum)` with this rank's part of a page's sum, flat in its type; only where has_sum.
  void read_sum(int page, const std::function<void(const at::Tensor& sum)>& read);

  /// True when sums of peers can be read without their help.
  bool peers_readable(int page) const {
    return communicator_->one_sided() && communicator_->size() > 1 && device_.is_cpu() && !on_disk(page) &&
           !admitted_shards_.contains(page);
  }

  /// The same of a peer's part, a shard; only where peers_readable, and while the peer has a complete sum and leaves it
  /// alone.
  void read_peer_sum(int page, int rank, const std::function<void(const at::Tensor& sum)>& read) const;

  /// As read_sum, to change it: squares are summed again, and listeners are told. Where there was no sum it is zeros.
  /// Between a backward that reduced (or `finish`) and the step. Errors: IoError.
  void edit_sum(int page, const std::function<void(const at::Tensor& sum)>& edit);

  /// Whether a parameter counts as one that received a gradient; the same on all ranks.
  void set_received(int parameter, bool received);

  /// Parameters that received a gradient on any rank since the last reset; after a backward that a step follows, or
  /// `finish`.
  const std::vector<bool>& received_anywhere() const { return received_anywhere_; }

  /// True when this rank has sums of whole pages.
  bool has_whole_sum() const { return communicator_->size() == 1 || (!policy_.sharded && policy_.whole_result); }

  /// From now on `callback()` is called before autograd adds to any parameter's gradient. It may throw, on the thread
  /// of that backward.
  void before_gradients(std::function<void()> callback) { before_gradients_ = std::move(callback); }

  /// The drive that has shards, for who reads them between backwards; null: none does.
  io::PageCache* disk() const { return policy_.disk.get(); }
  bool on_disk(int page) const { return policy_.disk != nullptr && policy_.disk->has(page); }

  /// Whether whole gradients add up in frames that they did not have at the start.
  bool widened() const { return widened_; }

  /// Parameters that received a gradient on this rank since the last reset.
  const std::vector<bool>& received_since_reset() const { return received_since_reset_; }

  /// True when anything arrived since the last reset.
  bool anything_arrived() const { return anything_arrived_; }

  /// Forgets all gradients: the next one starts a new sum.
  void reset();

  /// Frees the buffers of gradients on the device, in which nothing may be; `reload` makes them again. Collective.
  void unload();
  void reload();

  /// Gives unused frames back to the system.
  void trim() {
    if (frames_) frames_->trim();
  }

 private:
  /// Pages that may be waiting for peers: one being reduced and one behind it keep the transport busy.
  static constexpr std::size_t kMaxInFlight = 2;

  struct PageState {
    std::byte* home = nullptr;     ///< whole: the frame that holds micro batches' gradients, then the page's sum
    std::byte* frame = nullptr;    ///< receiving gradients: `home`, or one of the pool
    std::byte* result = nullptr;   ///< shard, or where in `home` the result stands
    bool result_at_start = false;  ///< of `home`, not at this rank's shard of it
    DType result_dtype = DType::kFloat32;
    std::int64_t shard_offset = 0;  ///< bytes, in the buffer of shards
    paging::StreamOrder order;      ///< of those that write `frame`
    c10::Device result_device = c10::kCPU;
    int in_frame = 0;               ///< parameters with a gradient in `frame`
    int arrived_this_backward = 0;  ///< those that got theirs, or more of it, in this backward
    int expected = 0;
    bool touched = false;                ///< this rank gave gradients since the last exchange
    bool reduction_started = false;      ///< reduced in this backward
    bool filled = false;                 ///< `result`, or the drive, holds a sum
    bool sum_ready = false;              ///< which listeners know to be complete
    bool reducing = false;               ///< that is under way
    bool keeps = false;                  ///< gradients in `kept_`, and not in frames
    int backwards_without_gradient = 0;  ///< in a row, in which no rank gave gradients
    std::string label;
    std::vector<layout::Segment> segments;  ///< of this rank's shard
    std::vector<optim::SquareSum> squares;  ///< of each of them
    std::int64_t squared_numel = 0;         ///< elements of the shard that these have seen

    /// Long enough that losses which take turns keep all their pages in the order.
    bool expects_gradients() const { return backwards_without_gradient < 4; }
  };
  struct AdmittedFrame {
    std::unique_ptr<comm::Memory> memory;
    LedgerEntry entry;
  };
  static constexpr int kNoPage = -1;

  /// Page-locked memory of the host for one sum that is added there.
  struct Slot {
    std::unique_ptr<memory::DeviceBuffer> memory;
    bool busy = false;
  };

  /// Memory of shards: where peers can read each other's, it is the communicator's.
  struct ShardMemory {
    std::unique_ptr<memory::DeviceBuffer> buffer;
    std::unique_ptr<comm::Memory> shared;
    LedgerEntry entry;
    std::int64_t bytes = 0;
    std::byte* data() const { return buffer ? buffer->data() : shared->data(); }
  };
  struct InFlight {
    int page = kNoPage;  ///< whose sum is complete after it
    comm::WorkPtr work;
    std::function<void()> settle;  ///< what is to be done here when `work` is complete; may be empty
    bool arrives = false;          ///< at the host, from the device: no peer is needed for that
  };

  void hook_early();
  void on_gradient(int parameter);
  bool has_no_place(int parameter) const;
  void wait_for_place(int parameter, const at::Tensor& gradient);
  void place_waiting(const std::vector<int>& pages);
  void widen();
  void widen_page(int page, std::byte* home, std::byte* frame, DType narrow, paging::FramePool& pool);
  void admit(int page);
  void describe(int page);
  void store(int parameter, const at::Tensor& gradient, float scale);
  void put(int parameter, const at::Tensor& gradient, bool first, float scale);
  void forget_squares(int page);
  std::vector<optim::SquaredPiece> squared_pieces(int page, const void* data, DType dtype) const;
  const std::byte* summed_shard(int page) const;
  void square_before_travel(int page, const at::Tensor& shard);
  void square_where_it_is(int page);
  std::size_t segment_at(int page, std::int64_t offset) const;
  void add_squares(int page, const std::byte* data, DType dtype, std::int64_t begin, std::int64_t numel);
  comm::OnReduced watch(int page, const std::byte* data, DType dtype);
  comm::OnReduced watch_parameter(int parameter, const std::byte* data, DType dtype);
  bool stores_sums() const { return !policy_.sharded && communicator_->size() == 1 && device_.is_cpu(); }
  bool may_keep(int page) const { return policy_.keep && !policy_.offloaded[page] && !on_disk(page); }
  bool keep(int parameter, const at::Tensor& gradient);
  void note_arrival(int parameter);
  void gather_kept(int page);
  void require_one_piece(int page);
  void square_again(int page, const at::Tensor& sum);
  void forget_kept(int page);
  bool start_kept_reduction(int page);
  void acquire_frame(int page);
  void reuse_sum_as_accumulator(int page);
  void consume(int page);
  void zero_gaps(int page);
  void start_ready_reductions();
  void start_reduction(int page);
  bool start_sharded_reduction(int page, std::byte* frame);
  bool start_whole_reduction(int page, std::byte* frame);
  bool reduce_through_fp32(int page, std::byte* frame, bool late);
  void retire(std::size_t keep);
  void complete(int page);
  void invalidate_sum(int page);
  void reduce_rest();
  void forget_backward();
  void settle_order();
  std::byte* own_shard(int page) const;
  at::Tensor sum_view(int page, std::byte* data) const;
  void allocate_pool();
  void allocate_whole_frames();
  void allocate_shards();
  ShardMemory allocate_shards(bool offloaded);
  bool reduces_into_shard(int page) const;
  void add_to_shard(int page, const at::Tensor& sum);
  bool travels(int page) const;
  std::byte* offloaded_shard(int page) const {
    const auto admitted = admitted_shards_.find(page);
    return admitted != admitted_shards_.end() ? admitted->second->data()
                                              : offloaded_shards_.data() + pages_[page].shard_offset;
  }
  std::optional<c10::Event> sent_so_far() const;
  void send(int page, const at::Tensor& sum);
  Slot& next_slot();
  void add_on_host(int page, std::byte* values, DType type);
  void retire_reductions(std::size_t keep);
  DType frame_dtype(int page) const;
  DType travel_dtype(int page) const;
  DType sum_dtype(int page) const;
  std::vector<std::string> exchange(const std::string& mine, std::string_view what);

  std::shared_ptr<const layout::Layout> layout_;
  std::vector<at::Tensor> parameters_;
  std::shared_ptr<comm::Communicator> communicator_;
  c10::Device device_;
  std::shared_ptr<Ledger> ledger_;
  ReducePolicy policy_;
  std::unique_ptr<paging::FramePool> frames_;  // of sharded pages, and for what comes late to whole ones
  ShardMemory shards_;                         // sharded
  ShardMemory offloaded_shards_;
  std::unique_ptr<comm::Memory> whole_frames_;  // whole
  LedgerEntry whole_entry_;
  std::unique_ptr<memory::DeviceBuffer> scratch_;  // sharded: one fp32 sum on its way into a shard of another kind
  paging::StreamOrder scratch_order_;
  std::optional<c10::Stream> send_stream_;  // of sums that leave the device
  std::array<Slot, 2> slots_;
  std::size_t next_slot_ = 0;
  std::vector<PageState> pages_;
  DeviceSquares device_squares_;  // instead of the pages', for sums on a device and those that left it
  std::vector<at::Tensor> kept_;  // per parameter
  std::vector<std::unique_ptr<memory::DeviceBuffer>>
      gathered_;                             // per page: its shard, where pages keep and this one does not any more
  std::vector<bool> in_frame_;               // per parameter: its gradient stands in the page's frame
  std::vector<bool> arrived_this_backward_;  // and some of it came in this backward
  std::vector<bool> received_since_reset_;
  std::vector<bool> received_anywhere_;
  std::vector<int> order_;
  std::vector<int> completed_;  // order in which pages completed in the first backward that reduced
  bool order_settled_ = false;
  std::size_t next_ = 0;  // first page of order_ that this backward has not come to
  std::deque<InFlight> in_flight_;
  std::function<void(int page)> on_sum_ready_;
  std::function<void(int page)> on_sum_invalidated_;
  std::function<void(const std::vector<int>& pages)> on_begins_;
  std::function<float()> on_left_;
  std::vector<at::Tensor> waiting_;  // per parameter: the fp32 sum of gradients that have no place; mostly undefined
  LedgerEntry waiting_entry_;
  std::vector<AdmittedFrame> admitted_frames_;  // of pages that were not trained at the start
  std::map<int, std::unique_ptr<memory::DeviceBuffer>> admitted_shards_;
  std::vector<bool> may_train_;  // per parameter: an optimizer has it
  bool widened_ = false;
  bool inside_ = false;  // a backward has begun and not ended
  float factor_ = 1.0f;  // of its gradients
  std::function<void()> before_gradients_;
  bool anything_arrived_ = false;
  bool backward_open_ = false;   // gradients came that no end_backward has dealt with
  bool reducing_ = false;        // in this backward
  bool reduced_ = false;         // the last backward did
  bool boundary_ = false;        // a step follows this backward
  bool anywhere_known_ = false;  // received_anywhere_ is of all that has arrived
  std::mutex mutex_;
  GradientHooks hooks_;
  bool hooked_early_ = false;  // before the forward, perhaps on another stream
};

}  // namespace zeropage::reduce
