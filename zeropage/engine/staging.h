/// \file
/// Gradients and parameters of pages whose update runs in another memory than theirs: offloaded pages of a model on a
/// GPU. Two slots of that memory take turns, so that one page comes while another is updated and a third goes:
///
///   1. fetch(page): on a stream of its own, after what the current stream has been given so far, the gradient starts
///      to come; so does the parameter where it is its own master.
///   2. wait(page): the calling thread waits for them before an update on the host, the current stream before one on
///      the device.
///   3. write_back(page, runs): what was updated starts to go home. The current stream waits for it, the thread does
///      not.
///   4. A slot is filled again by the same stream, so after what left it.
///
/// A page whose arrays are in the memory of its update passes through untouched, which is every page where the device
/// is the CPU.
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

/// Which pages travel. kAlways is for tests: the whole journey where there is no GPU.
enum class Travels { kBetweenMemories, kAlways };

class Staging {
 public:
  /// The slots are as large as the largest page that travels; their bytes count as buffers of `host` or of the device.
  Staging(const ModelState& state, const reduce::Reducer& reducer, c10::Device device, memory::MemoryPlace host,
          const std::shared_ptr<Ledger>& ledger, Travels travels = Travels::kBetweenMemories);

  /// Where a page's arrays are during its update.
  struct Location {
    void* gradient = nullptr;        ///< [OwnedRange::numel], in the type of Reducer::gradient
    std::byte* parameter = nullptr;  ///< [OwnedRange::numel], in the page's dtype
  };

  /// Room for pages that are trained since lately. No page may be on its way to an update.
  void grow();

  /// Pages arrive in the order in which they were fetched; at most one is fetched and has not arrived.
  void fetch(int page);
  Location wait(int page);
  void write_back(int page, const std::vector<Segment>& runs);

  /// Whether `fetch` and `write_back` of a page have anything to do.
  bool travels(int page) const { return gradient_travels(page) || parameter_travels(page); }

  /// Waits until what left for the host's memory is there, where anybody may read it.
  void wait_all();

 private:
  struct Slot {
    std::unique_ptr<memory::DeviceBuffer> gradient;   ///< [largest range], 4 bytes per element
    std::unique_ptr<memory::DeviceBuffer> parameter;  ///< [largest range], in its page's dtype
    std::optional<c10::Event> fetched;
    std::optional<c10::Event> written_back;
  };

  bool is_elsewhere(c10::Device place, int page) const;
  bool gradient_travels(int page) const;
  bool parameter_travels(int page) const;
  std::array<Slot, 2>& slots_of(int page);
  void record(std::optional<c10::Event>& event) const;
  void wait_for_copies() const;

  const ModelState& state_;
  const reduce::Reducer& reducer_;
  c10::Device device_;
  memory::MemoryPlace host_;
  std::shared_ptr<Ledger> ledger_;
  Travels travels_;
  std::optional<c10::Stream> stream_;  // absent on the CPU
  std::array<Slot, 2> on_host_;
  std::array<Slot, 2> on_device_;
  std::vector<int> slot_;  // per page: of its last journey
  int next_slot_ = 0;
};

}  // namespace zeropage::engine
