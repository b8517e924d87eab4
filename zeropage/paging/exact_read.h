/// \file
/// Reads of a sharded parameter that need its exact values, although its pages are gathered in 8 bits (pager_codes.cc).
#pragma once

#include "zeropage/memory/torch_config.h"

#include <memory>

#include "zeropage/paging/parameter_link.h"

namespace zeropage::paging {

/// While it exists, operators that read `tensor` find exact values. No effect for tensors whose values are always
/// exact. Collective if gathers are. Errors: as PageTable::touch.
class ExactRead {
 public:
  explicit ExactRead(const at::Tensor& tensor);
  ~ExactRead();
  ExactRead(const ExactRead&) = delete;
  ExactRead& operator=(const ExactRead&) = delete;

 private:
  std::shared_ptr<PagerHandle> handle_;  // null: nothing is kept
  int page_ = 0;
};

}  // namespace zeropage::paging
