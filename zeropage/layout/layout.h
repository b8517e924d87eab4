/// \file
/// The place of every parameter: parameters -> pages -> shards -> segments. Only arithmetic, no memory.
///
/// A page is a run of whole parameters of one dtype, one optimizer group and one kind (trainable or frozen, persistent
/// or not, needed whole or not), laid out one after the other in a flat buffer of `padded_numel` elements. Rank r's
/// shard of it is elements [r * shard_numel, (r + 1) * shard_numel). A segment is the part of one parameter in a given
/// range of a page. All positions are in elements of the page's dtype.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "zeropage/base/dtype.h"

namespace zeropage::layout {

/// The properties of a parameter that the layout needs.
struct ParameterSpec {
  std::string name;
  std::int64_t numel = 0;  ///< elements of its storage; may be 0
  DType dtype = DType::kFloat32;
  std::int64_t element_bytes = 4;  ///< equals element_bytes(dtype) except for kOther
  int group = 0;                   ///< optimizer group; -1: no optimizer updates it
  bool trainable = true;           ///< receives gradients and is updated
  bool persistent = false;         ///< stays whole on every rank at stage 3
  bool whole = false;              ///< its optimizer needs the whole parameter: it is in one shard if possible
};

struct LayoutOptions {
  int world_size = 1;
  std::int64_t page_numel = 1 << 22;            ///< a page is closed when the next parameter would exceed this
  std::int64_t parameter_alignment_numel = 64;  ///< every parameter starts at a multiple of this
  std::int64_t shard_alignment_numel = 2048;    ///< shard sizes are multiples of this: 4 KiB for 16-bit elements
};

/// A parameter's place in its page.
struct Placement {
  int parameter = 0;        ///< index into Layout::parameters()
  std::int64_t offset = 0;  ///< first element within the page
  std::int64_t numel = 0;
};

struct Page {
  int index = 0;
  DType dtype = DType::kFloat32;
  std::int64_t element_bytes = 4;
  int group = 0;
  bool trainable = true;
  bool persistent = false;
  std::int64_t used_numel = 0;    ///< end of the last parameter
  std::int64_t padded_numel = 0;  ///< world_size * shard_numel
  std::int64_t shard_numel = 0;
  std::vector<Placement> placements;  ///< in the order of offsets, never overlapping

  std::int64_t padded_bytes() const { return padded_numel * element_bytes; }
  std::int64_t shard_bytes() const { return shard_numel * element_bytes; }
};

/// The part of a parameter in a range of its page.
struct Segment {
  int parameter = 0;
  std::int64_t page_offset = 0;       ///< where the segment starts in the page
  std::int64_t parameter_offset = 0;  ///< where it starts in the parameter
  std::int64_t numel = 0;
};

class Layout {
 public:
  /// Packs `parameters` in the order given. Cost: linear. Errors: ConfigError when sizes overflow or options make no
  /// sense.
  Layout(std::vector<ParameterSpec> parameters, const LayoutOptions& options);

  const std::vector<ParameterSpec>& parameters() const { return parameters_; }
  const std::vector<Page>& pages() const { return pages_; }
  const LayoutOptions& options() const { return options_; }

  int page_of(int parameter) const { return page_of_[parameter]; }
  std::int64_t offset_of(int parameter) const { return offset_of_[parameter]; }

  /// Adds parameters, on new pages after the others. Errors: as the constructor's.
  void append(std::vector<ParameterSpec> parameters);

  /// From now on the parameters of a page, which is in a group of the optimizer, are trained. Their places do not
  /// change.
  void begin_training(int page);

  /// Whether `begin_training` was called for the page.
  bool began_later(int page) const { return began_later_[page]; }

  /// Segments of `page` in elements [begin, end), ascending; empty parameters have none.
  std::vector<Segment> segments(int page, std::int64_t begin, std::int64_t end) const;

  /// Segments of rank's shard of `page`.
  std::vector<Segment> shard_segments(int page, int rank) const;

  /// One line per parameter (name, numel, dtype, group, kind, page, offset). Ranks compare this text at the start.
  std::string describe() const;

 private:
  /// `indices`: those of the page's parameters in `parameters`, which follow the `known` ones.
  void add_page(const std::vector<ParameterSpec>& parameters, const std::vector<int>& indices, int known);

  std::vector<ParameterSpec> parameters_;
  LayoutOptions options_;
  std::vector<Page> pages_;
  std::vector<int> page_of_;
  std::vector<std::int64_t> offset_of_;
  std::vector<bool> began_later_;
};

/// The page size used when the user names none: about a 32nd of the model, between 2^16 and 2^23 elements, so that
/// small models do not become one page and large ones have frames of the size of a transformer block. `networked`: a
/// page costs one or two messages, independent of its size, so 2^20 elements or more, if that is at most an eighth of
/// the model.
std::int64_t default_page_numel(std::int64_t total_numel, bool networked = false);

}  // namespace zeropage::layout
