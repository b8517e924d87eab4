/// \file
/// Copies of what this rank updates, for the time in which an optimizer of the program's works on them; see
/// client_update.h.
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
  /// Copies the masters of all trained pages to the memory in which their optimizer state lives, or to the host's for a
  /// drive.
  /// `received`: parameters that have a gradient, which is multiplied by `gradient_scale`; empty: none has. Errors:
  /// IoError.
  ClientValues(UpdatePass& pass, const std::vector<bool>& received, float gradient_scale,
               const std::shared_ptr<Ledger>& ledger);

  const std::vector<ClientSegment>& segments() const { return segments_; }

  /// [numel that this rank updates of the page], fp32.
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

/// Collective: runs `work`, which is the program's and may throw anything. When it throws on some rank, every rank
/// throws: that rank what it threw, the others a PeerError with what all of them said; `what` begins its message.
void call_together(comm::Communicator& communicator, const std::string& what, const std::function<void()>& work);

/// The same, of work that has ended: `mine` is empty where it went well.
void require_success_everywhere(comm::Communicator& communicator, const std::string& what, const std::string& mine);

}  // namespace zeropage::engine
