/// \file
/// Gradients and parameters of pages that are updated in another memory than theirs: offloaded pages of a model on a
/// GPU. Two slots of that memory alternate, so that one page is copied in while another is updated and a third is
/// copied back:
///
///   1. fetch(page): on a separate stream, after the earlier work of the current stream, starts to copy the gradient,
///      and the parameter if it is its own master.
///   2. wait(page): the calling thread waits for them before an update on the host, the current stream before one on
///      the device.
///   3. write_back(page, runs): starts to copy the updated values back. The current stream waits for that, the thread
///      does not.
///   4. The same stream fills a slot again, and so only after the slot's values were copied back.
///
/// A page whose arrays are in the memory of its update is not copied; with the CPU as the device, that is every page.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <array>
#include <memory>
#include <optional>
#include <vector>

#include <c10/core/Event.h>

#include "zeropage/engine/host_update.h"
#include "zeropage/engine/model_state.h"
#include "zeropage/reduce/reducer.h"

namespace zeropage::engine {

/// Which pages are copied. kAlways is for tests without a GPU.
enum class CopiedPages { kBetweenMemories, kAlways };

class Staging {
 public:
  /// The slots are as large as the largest copied page; their bytes count as buffers of `host` or of the device.
  Staging(const ModelState& state, const reduce::Reducer& reducer, c10::Device device, memory::MemoryPlace host,
          const std::shared_ptr<Ledger>& ledger, CopiedPages copied_pages = CopiedPages::kBetweenMemories);

  /// The place of a page's arrays during its update.
  struct Location {
    void* gradient = nullptr;        ///< [OwnedRange::numel], in the type of Reducer::gradient
    std::byte* parameter = nullptr;  ///< [OwnedRange::numel], in the page's dtype
  };

  /// Enlarges the slots for newly trained pages. No page may be fetched or waited for.
  void grow();

  /// Pages arrive in the order in which they were fetched; at most one page is fetched and has not arrived.
  void fetch(int page);
  Location wait(int page);
  void write_back(int page, const std::vector<UpdateSegment>& runs);

  /// Whether `fetch` and `write_back` copy anything for a page.
  bool is_copied(int page) const { return is_gradient_copied(page) || is_parameter_copied(page); }

  /// Waits until all copies to the host's memory have ended, after which other code may read them.
  void wait_all();

 private:
  struct Slot {
    std::unique_ptr<memory::DeviceBuffer> gradient;   ///< [largest range], 4 bytes per element
    std::unique_ptr<memory::DeviceBuffer> parameter;  ///< [largest range], in its page's dtype
    std::optional<c10::Event> fetched;
    std::optional<c10::Event> written_back;
  };

  bool is_elsewhere(c10::Device place, int page) const;
  bool is_gradient_copied(int page) const;
  bool is_parameter_copied(int page) const;
  std::array<Slot, 2>& slots_of(int page);
  void record(std::optional<c10::Event>& event) const;
  void wait_for_copies() const;

  const ModelState& state_;
  const reduce::Reducer& reducer_;
  c10::Device device_;
  memory::MemoryPlace host_;
  std::shared_ptr<Ledger> ledger_;
  CopiedPages copied_pages_;
  std::optional<c10::Stream> stream_;  // absent on the CPU
  std::array<Slot, 2> on_host_;
  std::array<Slot, 2> on_device_;
  std::vector<int> slot_;  // per page: the slot of its last copy
  int next_slot_ = 0;
};

}  // namespace zeropage::engine
