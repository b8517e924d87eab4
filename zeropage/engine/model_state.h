/// \file
/// The model's state in its place: the layout of the parameters, the memory of every page, fp32 masters and moments.
/// Built once from the user's tensors, which keep their identity and get storages that point into the pages.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "zeropage/comm/communicator.h"
#include "zeropage/config/config.h"
#include "zeropage/engine/optimizer_state_store.h"
#include "zeropage/engine/placement.h"
#include "zeropage/formula/model_state.h"
#include "zeropage/layout/layout.h"
#include "zeropage/paging/pager.h"

namespace zeropage::engine {

struct ParameterInput;

/// The range of a page that this rank updates.
struct OwnedRange {
  std::int64_t begin = 0;  ///< elements of the page
  std::int64_t numel = 0;
  std::byte* parameter =
      nullptr;  ///< the range in the page's dtype: in the shard, or in the whole page; null: on the drive
  c10::Device device = c10::kCPU;  ///< whose memory that is
};

class ModelState {
 public:
  /// Collective. Checks the tensors, lays them out, compares layout and configuration with the other ranks, takes rank
  /// 0's values and re-homes every tensor, page by page: those of an Init scope are gathered and let go one page at a
  /// time. Ends the Init scope of this thread. Errors: ConfigError, PeerError; see Engine.
  ModelState(const std::vector<ParameterInput>& inputs, const config::Config& config,
             std::shared_ptr<comm::Communicator> communicator, c10::Device device, std::shared_ptr<Ledger> ledger);

  comm::Communicator& communicator() const { return *communicator_; }
  const std::shared_ptr<const layout::Layout>& layout() const { return layout_; }
  const std::vector<at::Tensor>& tensors() const { return tensors_; }
  paging::Pager& pager() { return *pager_; }
  const paging::Pager& pager() const { return *pager_; }
  DType compute_dtype() const { return compute_dtype_; }

  const OwnedRange& owned(int page) const { return owned_[page]; }

  /// The drive that has parameters; null: none does.
  io::PageCache* parameter_disk() const { return parameter_disk_.get(); }

  /// From now on operators, faults, and what moves to and from drives are added to `timeline`. Before the first of
  /// them. `gradients`: their drive, or null.
  void observe(const std::shared_ptr<Timeline>& timeline, io::PageCache* gradients);

  /// What has moved so far, that of gradients included.
  io::MoverStats disk_traffic(const io::PageCache* gradients) const;

  /// Collective where state lives on a drive: what the update has written there stands from now on, on all ranks or,
  /// when this fails, on none. Errors: PeerError, TimeoutError.
  void commit_step();

  /// Takes back what an update has written to a drive.
  void abandon_step() noexcept;

  /// Collective, between updates: more parameters, on pages of their own, with rank 0's values. Errors: as the
  /// constructor's.
  void add(const std::vector<ParameterInput>& inputs);

  /// All ranks train the parameters of this page from now on: moments are zeros, masters what the parameters are.
  void begin_training(int page);

  /// The moments of a parameter are those of the first step again.
  void forget_moments(int parameter);

  /// Where masters and moments are.
  OptimizerStateStore& state_store() const { return *state_store_; }

  /// Frees masters and moments. Nothing but reading parameters and writing them is possible afterwards.
  void keep_parameters_only();

  /// Per page: whether its optimizer state is offloaded.
  const std::vector<bool>& offloaded() const { return offloaded_; }

  /// Bytes of one rank by the formula: of the parameters in the precision's type, and of those that stay fp32 in it.
  formula::PlacedBytes formula_bytes(const formula::StateOptions& options) const;

  /// The same with everything on the device.
  formula::StateBytes formula_bytes_on_device(const formula::StateOptions& options) const;

  /// Elements by kind, for the formula; of pages that `options` of this precision describe, or of fp32 pages beside
  /// them.
  formula::ParameterCounts counts(bool kept_fp32 = false) const;

  /// True when the page's parameters are 16-bit and have fp32 masters in `home`, if they are trained.
  bool has_masters(int page) const {
    const DType type = layout_->pages()[static_cast<std::size_t>(page)].dtype;
    return config_.fp32_masters && (type == DType::kBFloat16 || type == DType::kFloat16);
  }

  /// True when a page's parameters are what its update starts from, and no master of theirs is.
  bool is_own_master(int page) const { return !has_masters(page); }

  /// True when some parameters can be absent.
  bool anything_paged() const;

  /// Start of a page that is whole on this rank; null for paged ones.
  std::byte* whole_page(int page) const { return whole_[page]; }

  /// Takes in parameters whose data was replaced (`p.data = ...`, `p.to(...)`) since the last call, and marks them
  /// again. Errors: UsageError when the new data has another shape, type or device.
  void absorb_replaced();

  /// Errors: UsageError when a parameter has another type than the engine computes with, or is on another device
  /// (`model.to(...)`).
  void require_types() const;

  /// What users wrote since the last step becomes part of the state. Nobody may be reading this rank's shards.
  void take_user_writes();

  /// Per page: whether something wrote it on this rank since `settle_writes`: an operator, or data that was replaced.
  std::vector<bool> written_pages() const;

  /// 16 characters that say what this rank has of a parameter; blanks, when it is sharded and was not written here.
  std::string digest(int parameter) const;

  /// What users wrote so far is the same on all ranks, or is what an update or a load wrote.
  void settle_writes();

  /// Collective: gives every sharded parameter memory of its own that holds all of it. Memory: those parameters, whole.
  /// Errors: PeerError, TimeoutError.
  void make_whole();

  /// The engine ends: parameters keep their values and owe it nothing. Sharded ones stay so; operators gather them as
  /// before, until they are destroyed or another engine takes them over.
  void leave_parameters();

  /// A tensor that is no longer a parameter's: it keeps the values in memory of its own, and another one takes its
  /// place before anything else is done with the state. What that one has becomes the parameter's.
  void let_go(int parameter);
  void take(int parameter, const at::Tensor& tensor);

  /// Moves parameters to `host`, where they cannot be read, until `reload_parameters`. Collective. Errors: see
  /// Pager::unload.
  void unload_parameters(memory::MemoryPlace host);
  void reload_parameters();

  /// From now on `callback(page)` is called before what a user has written becomes part of the state.
  void before_user_write(std::function<void(int page)> callback) { before_user_write_ = std::move(callback); }

  /// 16-bit pages: where users changed values, the fp32 master takes them; elsewhere it keeps its low bits.
  void follow_user_writes(int page, std::byte* owned);

 private:
  void check(const std::vector<ParameterInput>& inputs) const;
  std::vector<layout::ParameterSpec> specs(const std::vector<ParameterInput>& inputs) const;
  /// The greatest length of a page: the configuration's, or what fits `specs`.
  std::int64_t page_numel(const std::vector<layout::ParameterSpec>& specs) const;
  void agree_with_peers() const;
  std::pair<std::int64_t, std::int64_t> state_size(int page) const;
  void allocate();
  void allocate_whole(std::int64_t bytes);
  void allocate_added(int first_page);
  void place_owned(int page);
  bool is_added(int page) const { return !added_whole_.empty() && page >= added_whole_.front().first_page; }
  bool to_be_paged(const layout::Page& page) const;
  void remember(const std::vector<ParameterInput>& inputs);
  void take_values(int first_page);
  void fill_page(const layout::Page& page, void* staging);
  void fill_state(const layout::Page& page, const at::Tensor& values);
  void rehome(const layout::Page& page);
  void attach(int parameter);
  void announce_user_write(int page);
  std::string digest_of_frame(int parameter) const;
  std::shared_ptr<void> whole_owner(int page) const;
  bool needs_mark(int page) const;
  at::Tensor place_of(int parameter, void* page_start, at::ScalarType type) const;

  const config::Config& config_;
  std::shared_ptr<comm::Communicator> communicator_;
  c10::Device device_;
  std::shared_ptr<Ledger> ledger_;
  Placement placement_;
  DType compute_dtype_;
  std::vector<at::Tensor> tensors_;
  std::shared_ptr<layout::Layout> own_layout_;
  std::shared_ptr<const layout::Layout> layout_;  // the same, for others
  std::shared_ptr<io::PageCache> parameter_disk_;
  std::shared_ptr<paging::Pager> pager_;  // and of sharded parameters' storages, when the engine has ended
  std::shared_ptr<comm::Memory> whole_memory_;
  LedgerEntry whole_entry_;
  std::vector<std::byte*> whole_;
  struct AddedWhole {
    int first_page = 0;  // up to those of the next one
    std::shared_ptr<comm::Memory> memory;
    LedgerEntry entry;
  };
  std::vector<AddedWhole> added_whole_;             // of pages that were added
  std::unique_ptr<memory::DeviceBuffer> unloaded_;  // whole pages, while they are unloaded
  std::vector<bool> offloaded_;
  std::unique_ptr<OptimizerStateStore> state_store_;
  std::vector<OwnedRange> owned_;
  std::function<void(int page)> before_user_write_;  // or null
  std::vector<std::uint32_t> versions_;              // per parameter: of its tensor, when writes were settled
  std::map<int, std::string> digests_before_;        // of sharded parameters that were written and have left since then
  std::vector<c10::Storage> storages_;               // per parameter: its home
  std::vector<std::vector<std::int64_t>> sizes_;
  std::vector<std::vector<std::int64_t>> strides_;  // per parameter: as laid out in its page
};

/// What this rank updates of a page's parameters, held while this lives: owned(page).parameter, or its place in a
/// buffer of the drive. One thread. Errors: those of HeldPage.
class HeldParameter {
 public:
  HeldParameter(const ModelState& state, int page, Access access, io::Fill fill = io::Fill::kRead);

  std::byte* data() const { return held_ ? held_->data() : in_memory_; }

 private:
  std::byte* in_memory_;
  std::optional<io::HeldPage> held_;
};

}  // namespace zeropage::engine
