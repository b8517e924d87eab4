/// \file
/// The model's state: the layout of the parameters, the memory of every page, fp32 masters and moments. Built once from
/// the user's tensors, which remain the same objects and get storages that point into the pages.
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
#include "zeropage/engine/sharding.h"
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
  c10::Device device = c10::kCPU;  ///< the device of that memory
};

class ModelState {
 public:
  /// Collective. Checks the tensors, lays them out, compares layout and configuration with the other ranks, takes rank
  /// 0's values and moves every tensor into its page, page by page: those of an Init scope are gathered and released
  /// one page at a time. Ends the Init scope of this thread. Errors: ConfigError, PeerError; see Engine.
  ModelState(const std::vector<ParameterInput>& inputs, const config::Config& config,
             std::shared_ptr<comm::Communicator> communicator, c10::Device device, std::shared_ptr<Ledger> ledger);

  comm::Communicator& communicator() const { return *communicator_; }
  c10::Device device() const { return device_; }
  const std::shared_ptr<const layout::Layout>& layout() const { return layout_; }
  const std::vector<at::Tensor>& tensors() const { return tensors_; }
  paging::Pager& pager() { return *pager_; }
  const paging::Pager& pager() const { return *pager_; }
  DType compute_dtype() const { return compute_dtype_; }

  const OwnedRange& owned(int page) const { return owned_[page]; }

  /// The drive with parameters; null: none.
  io::PageCache* parameter_disk() const { return parameter_disk_.get(); }

  /// From now on operators, faults and the traffic of drives are added to `timeline`. Called before the first of them.
  /// `gradients`: their drive, or null.
  void observe(const std::shared_ptr<Timeline>& timeline, io::PageCache* gradients);

  /// The traffic so far, including gradients.
  io::MoverStats disk_traffic(const io::PageCache* gradients) const;

  /// Collective if state is on a drive: the update's writes there become final on all ranks or, when this fails, on
  /// none. Errors: PeerError, TimeoutError.
  void commit_step();

  /// Undoes an update's writes to a drive.
  void abandon_step() noexcept;

  /// Collective, between updates: adds parameters on separate pages, with rank 0's values. Errors: as the
  /// constructor's.
  void add(const std::vector<ParameterInput>& inputs);

  /// Starts the training of this page's parameters on all ranks: with zero moments, and masters equal to the
  /// parameters.
  void begin_training(int page);

  /// Resets the moments of a parameter to those of the first step.
  void forget_moments(int parameter);

  /// The store of masters and moments.
  OptimizerStateStore& state_store() const { return *state_store_; }

  /// Frees masters and moments. Afterwards parameters can only be read and written.
  void keep_parameters_only();

  /// Per page: whether its optimizer state is offloaded.
  const std::vector<bool>& offloaded() const { return offloaded_; }

  /// Bytes of one rank by the formula: of parameters in the precision's type, and of those that stay fp32.
  formula::PlacedBytes formula_bytes(const formula::StateOptions& options) const;

  /// The same with everything on the device.
  formula::StateBytes formula_bytes_on_device(const formula::StateOptions& options) const;

  /// Elements by kind, for the formula; of pages in the precision's type, or of the other pages, which stay fp32.
  formula::ParameterCounts counts(bool kept_fp32 = false) const;

  /// True when the page's parameters are 16-bit and have fp32 masters in `home`, if they are trained.
  bool has_masters(int page) const {
    const DType type = layout_->pages()[static_cast<std::size_t>(page)].dtype;
    return config_.fp32_masters && (type == DType::kBFloat16 || type == DType::kFloat16);
  }

  /// True when a page's update starts from its parameters, which have no masters.
  bool is_own_master(int page) const { return !has_masters(page); }

  /// True when some parameters can be absent.
  bool anything_paged() const;

  /// Start of an unsharded page; null for paged ones.
  std::byte* whole_page(int page) const { return whole_[page]; }

  /// Adopts parameters whose data was replaced (`p.data = ...`, `p.to(...)`) since the last call, and marks them again.
  /// Errors: UsageError when the new data has another shape, type or device.
  void adopt_replaced_data();

  /// Errors: UsageError when a parameter has another type than the engine computes with, or is on another device
  /// (`model.to(...)`).
  void require_types() const;

  /// Makes users' writes since the last step part of the state. No peer may be reading this rank's shards.
  void take_user_writes();

  /// Per page: whether an operator or replaced data changed it on this rank since `mark_writes_as_equal`.
  std::vector<bool> written_pages() const;

  /// 16 characters that identify this rank's values of a parameter; blanks if it is sharded and was not written here.
  std::string digest(int parameter) const;

  /// Declares the writes so far as equal on all ranks: they have been compared, or an update or a load made them.
  void mark_writes_as_equal();

  /// Collective: gives every sharded parameter separate memory for all of its elements. Memory: all of those
  /// parameters.
  /// Errors: PeerError, TimeoutError.
  void make_whole();

  /// At the end of the engine: parameters keep their values and become independent of it. Sharded ones stay sharded;
  /// operators gather them as before, until they are destroyed or another engine takes them over.
  void leave_parameters();

  /// Detaches a parameter's tensor, which keeps the values in separate memory. Another tensor must replace it before
  /// anything else is done with the state, and its values become the parameter's.
  void drop_tensor(int parameter);
  void set_tensor(int parameter, const at::Tensor& tensor);

  /// Moves parameters to `host`, where they cannot be read, until `reload_parameters`. Collective. Errors: see
  /// Pager::unload.
  void unload_parameters(memory::MemoryPlace host);
  void reload_parameters();

  /// From now on `callback(page)` is called before a user's writes become part of the state.
  void before_user_write(std::function<void(int page)> callback) { before_user_write_ = std::move(callback); }

  /// 16-bit pages: the fp32 master takes values that users changed, and keeps its low bits elsewhere.
  void follow_user_writes(int page, std::byte* owned);

 private:
  void check(const std::vector<ParameterInput>& inputs) const;
  std::vector<layout::ParameterSpec> specs(const std::vector<ParameterInput>& inputs) const;
  /// The maximum length of a page: the configuration's, or one that fits `specs`.
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
  Sharding sharding_;
  DType compute_dtype_;
  std::vector<at::Tensor> tensors_;
  std::shared_ptr<layout::Layout> own_layout_;
  std::shared_ptr<const layout::Layout> layout_;  // the same, for other owners
  std::shared_ptr<io::PageCache> parameter_disk_;
  std::shared_ptr<paging::Pager> pager_;  // also owned by sharded parameters' storages after the engine's end
  std::shared_ptr<comm::Memory> whole_memory_;
  LedgerEntry whole_entry_;
  std::vector<std::byte*> whole_;
  struct AddedWhole {
    int first_page = 0;  // up to the first page of the next one
    std::shared_ptr<comm::Memory> memory;
    LedgerEntry entry;
  };
  std::vector<AddedWhole> added_whole_;             // of pages that were added
  std::unique_ptr<memory::DeviceBuffer> unloaded_;  // whole pages, while they are unloaded
  std::vector<bool> offloaded_;
  std::unique_ptr<OptimizerStateStore> state_store_;
  std::vector<OwnedRange> owned_;
  std::function<void(int page)> before_user_write_;  // or null
  std::vector<std::uint32_t> versions_;              // per parameter: version of its tensor when writes were settled
  std::map<int, std::string> digests_before_;        // of sharded parameters that were written and evicted since then
  std::vector<c10::Storage> storages_;               // per parameter: its home
  std::vector<std::vector<std::int64_t>> sizes_;
  std::vector<std::vector<std::int64_t>> strides_;  // per parameter: its strides in the page
};

/// This rank's part of a page's parameters, held while this object exists: owned(page).parameter, or its place in a
/// buffer of the drive. For one thread. Errors: those of HeldPage.
class HeldParameter {
 public:
  HeldParameter(const ModelState& state, int page, Access access, io::Fill fill = io::Fill::kRead);

  std::byte* data() const { return held_ ? held_->data() : in_memory_; }

 private:
  std::byte* in_memory_;
  std::optional<io::HeldPage> held_;
};

}  // namespace zeropage::engine
