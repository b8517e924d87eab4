/// \file
/// The model's state in its place: the layout of the parameters, the memory of every page, fp32 masters and moments. Built once
/// from the user's tensors, which keep their identity and get storages that point into the pages.
#pragma once

#include "zeropage/paging/torch_config.h"

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "zeropage/comm/communicator.h"
#include "zeropage/config/config.h"
#include "zeropage/engine/placement.h"
#include "zeropage/engine/state_home.h"
#include "zeropage/layout/layout.h"
#include "zeropage/paging/pager.h"
#include "zeropage/plan/model_state.h"

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
  /// Collective. Checks the tensors, lays them out, compares layout and configuration with the other ranks, takes rank 0's
  /// values and re-homes every tensor, page by page: those of an Init scope are gathered and let go one page at a time.
  /// Ends the Init scope of this thread. Errors: ConfigError, PeerError; see Engine.
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

  /// From now on operators, faults, and what moves to and from drives are added to `timeline`. Before the first of them. `gradients`:
  /// their drive, or null.
  void observe(const std::shared_ptr<Timeline>& timeline, io::PageCache* gradients);

  /// What has moved so far, that of gradients included.
  io::MoverStats disk_traffic(const io::PageCache* gradients) const;

  /// Collective where state lives on a drive: what the update has written there stands from now on, on all ranks or, when this
  /// fails, on none. Errors: PeerError, TimeoutError.
  void commit_step();

  /// Takes back what an update has written to a drive.
  void abandon_step() noexcept;

  /// Where masters and moments are.
  StateHome& home() const { return *home_; }

  /// Per page: whether its optimizer state is offloaded.
  const std::vector<bool>& offloaded() const { return offloaded_; }

  /// Elements by kind, for the formula.
  plan::ParameterCounts counts() const;

  /// True when 16-bit parameters have fp32 masters in `home`.
  bool has_masters() const { return compute_dtype_ != DType::kFloat32 && config_.fp32_masters; }

  /// True when a page's parameters are what its update starts from, and no master of theirs is.
  bool is_own_master(int page) const { return layout_->pages()[page].dtype == DType::kFloat32 || !has_masters(); }

  /// True when some parameters can be absent.
  bool anything_paged() const;

  /// Start of a page that is whole on this rank; null for paged ones.
  std::byte* whole_page(int page) const { return whole_[page]; }

  /// Takes in parameters whose data was replaced (`p.data = ...`, `p.to(...)`) since the last call, and marks them again. Errors:
  /// UsageError when the new data has another shape.
  void absorb_replaced();

  /// What users wrote since the last step becomes part of the state. Nobody may be reading this rank's shards.
  void take_user_writes();

  /// Moves parameters to `host`, where they cannot be read, until `reload_parameters`. Collective. Errors: see Pager::unload.
  void unload_parameters(paging::MemoryPlace host);
  void reload_parameters();

  /// From now on `callback(page)` is called before what a user has written becomes part of the state.
  void before_user_write(std::function<void(int page)> callback) { before_user_write_ = std::move(callback); }

  /// 16-bit pages: where users changed values, the fp32 master takes them; elsewhere it keeps its low bits.
  void follow_user_writes(int page, std::byte* owned);

 private:
  void check(const std::vector<ParameterInput>& inputs) const;
  std::vector<layout::ParameterSpec> specs(const std::vector<ParameterInput>& inputs) const;
  void agree_with_peers() const;
  void allocate();
  void allocate_whole(std::int64_t bytes);
  void fill_page(const layout::Page& page, void* staging);
  void fill_state(const layout::Page& page, const at::Tensor& values);
  void rehome(const layout::Page& page);
  void attach(int parameter);
  void announce_user_write(int page) const {
    if (before_user_write_) before_user_write_(page);
  }
  std::shared_ptr<void> whole_owner() const;
  bool needs_mark(int page) const;
  at::Tensor place_of(int parameter, void* page_start, at::ScalarType type) const;

  const config::Config& config_;
  std::shared_ptr<comm::Communicator> communicator_;
  c10::Device device_;
  std::shared_ptr<Ledger> ledger_;
  Placement placement_;
  DType compute_dtype_;
  std::vector<at::Tensor> tensors_;
  std::shared_ptr<const layout::Layout> layout_;
  std::shared_ptr<io::PageCache> parameter_disk_;
  std::unique_ptr<paging::Pager> pager_;
  std::shared_ptr<comm::Memory> whole_memory_;
  LedgerEntry whole_entry_;
  std::vector<std::byte*> whole_;
  std::unique_ptr<paging::DeviceBuffer> away_;  // whole pages, while they are unloaded
  std::vector<bool> offloaded_;
  std::unique_ptr<StateHome> home_;
  std::vector<OwnedRange> owned_;
  std::function<void(int page)> before_user_write_;  // or null
  std::vector<c10::Storage> storages_;               // per parameter: its home
  std::vector<std::vector<std::int64_t>> sizes_;
  std::vector<std::vector<std::int64_t>> strides_;  // per parameter: as laid out in its page
};

/// What this rank updates of a page's parameters, held while this lives: owned(page).parameter, or its place in a buffer of the drive.
/// One thread. Errors: those of HeldPage.
class HeldParameter {
 public:
  HeldParameter(const ModelState& state, int page, Access access, io::Fill fill = io::Fill::kRead);

  std::byte* data() const { return held_ ? held_->data() : in_memory_; }

 private:
  std::byte* in_memory_;
  std::optional<io::HeldPage> held_;
};

}  // namespace zeropage::engine
