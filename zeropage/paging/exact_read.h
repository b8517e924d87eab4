/// \file
/// Reads of a sharded parameter that need its exact values, where its pages travel in 8 bits (pager_codes.cc).
#pragma once

#include "zeropage/memory/torch_config.h"

#include <memory>

#include "zeropage/paging/parameter_link.h"

namespace zeropage::paging {

/// While it lives, operators that read `tensor` find exact values. Nothing for tensors whose values always are.
/// Collective where gathers are. Errors: as PageTable::touch.
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
