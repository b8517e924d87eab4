/// \file
/// Updates of offloaded pages that begin before the verdict of their step (zeropage.speculation_bytes):
///
///   1. begin: when the gradients are complete on this rank, it updates pages as the verdict will most likely have it: everything is
///      finite, nothing is clipped, the parameters that got gradients here are those that got any. The old bits of a page go to the undo log
///      first. Its rounded parameter goes there, too, and not to its place, where peers may still read.
///   2. settle: where the verdict says so, the pages stand, and `finish` puts each parameter in its place at its turn.
///   3. Where it does not, undo puts the old bits back, and the update is as if nothing had begun.
///
/// Left out are pages of which anything lives on a drive, which users have written (their masters follow after the verdict), or whose
/// parameter is its own master elsewhere than in this rank's memory alone; and all pages when this rank's gradients alone are not
/// finite or must be clipped. What does not fit the log waits for the verdict.
#pragma once

#include "zeropage/paging/torch_config.h"

#include <memory>
#include <vector>

#include "zeropage/base/ledger.h"
#include "zeropage/config/config.h"
#include "zeropage/engine/agreement.h"
#include "zeropage/engine/model_state.h"
#include "zeropage/engine/transit.h"
#include "zeropage/engine/update.h"
#include "zeropage/paging/device_buffer.h"
#include "zeropage/reduce/reducer.h"

namespace zeropage::engine {

class Speculation {
 public:
  /// The log counts as buffers of `host`; without one nothing ever begins.
  Speculation(const config::Config& config, ModelState& state, const reduce::Reducer& reducer, Transit& transit,
              std::int64_t log_bytes, paging::MemoryPlace host, const std::shared_ptr<Ledger>& ledger);

  /// Updates what it may, from what this rank knows of the verdict; `divisor` as of the update, `steps` before it. Returns how many
  /// pages. Errors: as update_pages; then everything is as before.
  int begin(const LocalVerdict& mine, double divisor, const std::vector<config::OptimizerParams>& groups,
            std::vector<std::int64_t> steps);

  /// Whether the pages stand, by what the verdict says; else they are as before.
  bool settle(const UpdateInputs& inputs);

  /// Puts back what has begun.
  void undo();

  /// Whether a page has its update already; then `finish` is its turn.
  bool is_ahead(int page) const;
  void finish(int page);

 private:
  struct Ahead {
    int page = 0;
    std::byte* old_state = nullptr;
    std::byte* parameter = nullptr;  ///< 16 bit: the new one; fp32: the old one
    std::vector<Segment> segments;   ///< what is changed
  };

  bool may_begin(int page) const;
  bool begin_page(int page, const UpdateInputs& expected);
  void put_back(const Ahead& ahead);

  const config::Config& config_;
  ModelState& state_;
  const reduce::Reducer& reducer_;
  Transit& transit_;
  paging::DeviceBuffer log_;
  std::int64_t used_bytes_ = 0;
  std::vector<Ahead> ahead_;
  // What the pages were updated by.
  float gradient_scale_ = 1.0F;
  std::vector<bool> received_;
};

/// The one that `config` asks for.
std::unique_ptr<Speculation> make_speculation(const config::Config& config, ModelState& state,
                                              const reduce::Reducer& reducer, Transit& transit,
                                              paging::MemoryPlace host, const std::shared_ptr<Ledger>& ledger);

}  // namespace zeropage::engine
