/// \file
/// Copies of the elements that this rank updates, while the program's optimizer works on them; see client_update.h.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "zeropage/engine/client_update.h"
#include "zeropage/engine/update_pass.h"
#include "zeropage/memory/device_buffer.h"

namespace zeropage::engine {

class ClientValues {
 public:
  /// Copies the masters of all trained pages to the memory of their optimizer state, or to the host's for state on a
  /// drive. `received`: parameters with a gradient, which is multiplied by `gradient_scale`; empty: no parameter has
  /// one.
  /// Errors: IoError.
  ClientValues(UpdatePass& pass, const std::vector<bool>& received, float gradient_scale,
               const std::shared_ptr<Ledger>& ledger);

  const std::vector<ClientSegment>& segments() const { return segments_; }

  /// This rank's part of the page, fp32.
  const at::Tensor& of_page(int page) const { return values_[static_cast<std::size_t>(page)]; }

 private:
  at::Tensor buffer(std::int64_t numel, const memory::MemoryPlace& place);

  std::shared_ptr<Ledger> ledger_;
  std::vector<std::unique_ptr<memory::DeviceBuffer>> buffers_;
  std::vector<at::Tensor> values_;  // per page; undefined: it is not trained
  std::vector<ClientSegment> segments_;
};

/// Pages with trained parameters.
std::vector<int> trained_pages(const layout::Layout& layout);

/// Collective: runs the program's `work`, which may throw anything. When it throws on some rank, every rank throws:
/// that rank its own exception, the others a PeerError with the messages of all failed ranks; `what` begins its
/// message.
void run_on_all_ranks(comm::Communicator& communicator, const std::string& what, const std::function<void()>& work);

/// The same for work that has ended: `mine` is empty if it succeeded.
void require_success_everywhere(comm::Communicator& communicator, const std::string& what, const std::string& mine);

}  // namespace zeropage::engine
