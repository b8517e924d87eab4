/// \file
/// The pages of parameters that one operator or kernel uses: resident and pinned from `use` until this object is
/// destroyed. Callers of kernels with raw pointers (compiled code, which bypasses the dispatcher) use it like the
/// fallback.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>

#include <memory>
#include <string_view>
#include <utility>

#include "zeropage/paging/parameter_link.h"

namespace zeropage::paging {

class PinnedPages {
 public:
  PinnedPages() = default;
  ~PinnedPages();
  PinnedPages(const PinnedPages&) = delete;
  PinnedPages& operator=(const PinnedPages&) = delete;

  /// Makes the page of `tensor` resident, if it is a parameter or an alias of one, and records a write of it. `user`
  /// (for messages and times) must exist as long as this object. Costs a few pointer reads for other tensors.
  /// Errors: as PageTable::touch.
  void use(const at::Tensor& tensor, bool writes, std::string_view user);

 private:
  void begin(const ParameterLink& link, std::string_view user);

  c10::SmallVector<std::pair<std::shared_ptr<PagerHandle>, int>, 4> pinned_;
  std::shared_ptr<Timeline> timeline_;  // observed: of the first page, as the next three
  std::string_view name_;
  int page_ = -1;
  std::int64_t begin_ns_ = 0;
};

}  // namespace zeropage::paging
