#include "zeropage/engine/optimizer_state_store.h"

#include <algorithm>
#include <exception>
#include <map>
#include <utility>

#include "zeropage/base/checked.h"

namespace zeropage::engine {
namespace {

using config::StateDtype;

/// Bytes of one state, rounded up to a cache line.
std::int64_t state_bytes(StateDtype dtype, std::int64_t numel, std::int64_t blocks) {
  std::int64_t bytes = 4 * numel;
  if (dtype == StateDtype::kBFloat16) bytes = 2 * numel;
  if (dtype == StateDtype::kInt8) bytes = numel + blocks;
  return round_up(bytes, 64);
}

/// Bytes of the elements of a packed state.
std::int64_t packed_bytes(StateDtype dtype, std::int64_t numel) {
  return dtype == StateDtype::kBFloat16 ? 2 * numel : numel;
}

/// Exponents of `numel` elements.
std::int64_t packed_blocks(StateDtype dtype, std::int64_t numel) {
  return dtype == StateDtype::kInt8 ? ceil_div(numel, optim::kPackedBlockNumel) : 0;
}

/// Elements of a packed state, from the start of a block.
struct PackedOnHost {
  PackedOnHost(StateDtype dtype, std::int64_t numel)
      : data(packed_bytes(dtype, numel)), exponents(packed_blocks(dtype, numel)) {}
  optim::PackedState state() { return {data.data(), exponents.data()}; }

  std::vector<std::byte> data;
  std::vector<std::uint8_t> exponents;
};

void copy_packed(const optim::PackedState& to, c10::Device to_device, const optim::PackedState& from,
                 c10::Device from_device, StateDtype dtype, std::int64_t numel) {
  memory::copy_bytes(to.data, to_device, from.data, from_device, packed_bytes(dtype, numel));
  memory::copy_bytes(to.exponents, to_device, from.exponents, from_device, packed_blocks(dtype, numel));
}

class MemoryStateStore final : public OptimizerStateStore {
 public:
  MemoryStateStore(const StateShape& shape, memory::MemoryPlace device, memory::MemoryPlace host,
                   const std::shared_ptr<Ledger>& ledger)
      : shape_(shape),
        device_(device),
        ledger_(ledger),
        tiers_{{Tier{device, nullptr}, Tier{host, nullptr}}},
        pages_(shape.numel.size()) {
    for (const bool offloaded : {false, true}) fill_tier(offloaded);
  }

  c10::Device device(int page) const override { return tiers_[shape_.offloaded[page]].place.device; }
  bool is_in_place(int) const override { return true; }
  std::vector<int> begin_pass(std::vector<int> pages) override { return pages; }
  StateArrays acquire(int page) override {
    StateArrays arrays = pages_[page];
    arrays.device = device(page);
    return arrays;
  }
  void release(int page, bool changed) override {}
  void end_pass() override {}
  void commit() override {}
  void abandon() override {}
  io::MoverStats traffic() const override { return {}; }
  void observe(const std::shared_ptr<Timeline>&) override {}
  void add(int page, const PageShape& shape) override {
    const auto index = static_cast<std::size_t>(page);
    const std::size_t count = std::max(pages_.size(), index + 1);
    shape_.numel.resize(count);
    shape_.blocks.resize(count);
    shape_.offloaded.resize(count);
    shape_.masters.resize(count);
    pages_.resize(count);
    shape_.numel[index] = shape.numel;
    shape_.blocks[index] = shape.blocks;
    shape_.offloaded[index] = shape.offloaded;
    shape_.masters[index] = shape.masters;
    if (shape.numel == 0) return;
    added_[page] = memory_of(page);
    pages_[index] = shape_.arrays(page, added_[page]->data());
  }
  void unload() override { move_kept(tiers_[true].place); }
  void reload() override { move_kept(device_); }

 private:
  struct Tier {
    memory::MemoryPlace place;
    std::unique_ptr<memory::DeviceBuffer> memory;
  };

  std::unique_ptr<memory::DeviceBuffer> memory_of(int page) const {
    const auto& place = tiers_[shape_.offloaded[static_cast<std::size_t>(page)]].place;
    return std::make_unique<memory::DeviceBuffer>(shape_.bytes(page), place, ledger_, MemoryKind::kOptimizer);
  }

  void fill_tier(bool offloaded) {
    std::int64_t bytes = 0;
    for (std::size_t page = 0; page < pages_.size(); ++page) {
      if (shape_.offloaded[page] == offloaded) bytes += shape_.bytes(static_cast<int>(page));
    }
    auto& tier = tiers_[offloaded];
    tier.memory = std::make_unique<memory::DeviceBuffer>(bytes, tier.place, ledger_, MemoryKind::kOptimizer);
    place_arrays(offloaded);
  }

  void place_arrays(bool offloaded) {
    std::byte* next = tiers_[offloaded].memory->data();
    for (std::size_t page = 0; page < pages_.size(); ++page) {
      const auto index = static_cast<int>(page);
      if (shape_.numel[page] == 0 || shape_.offloaded[page] != offloaded || added_.contains(index)) continue;
      pages_[page] = shape_.arrays(index, std::exchange(next, next + shape_.bytes(index)));
    }
  }

  /// Moves state that is not offloaded.
  void move_kept(memory::MemoryPlace place) {
    auto& kept = tiers_[false];
    const std::int64_t bytes = kept.memory->bytes();
    auto memory = std::make_unique<memory::DeviceBuffer>(bytes, place, ledger_, MemoryKind::kOptimizer);
    memory::copy_bytes(memory->data(), place.device, kept.memory->data(), kept.place.device, bytes);
    const c10::Device before = kept.place.device;
    kept.place = place;
    kept.memory = std::move(memory);
    place_arrays(false);
    for (auto& [page, added] : added_) {
      if (shape_.offloaded[static_cast<std::size_t>(page)]) continue;
      const auto old = std::exchange(added, memory_of(page));
      memory::copy_bytes(added->data(), place.device, old->data(), before, old->bytes());
      pages_[static_cast<std::size_t>(page)] = shape_.arrays(page, added->data());
    }
  }

  StateShape shape_;
  memory::MemoryPlace device_;
  std::shared_ptr<Ledger> ledger_;
  std::array<Tier, 2> tiers_;                                   // of state that stays, and of offloaded state
  std::map<int, std::unique_ptr<memory::DeviceBuffer>> added_;  // by page, separate from the tiers
  std::vector<StateArrays> pages_;
};

}  // namespace

std::unique_ptr<OptimizerStateStore> make_memory_state_store(const StateShape& shape, memory::MemoryPlace device,
                                                             memory::MemoryPlace host, std::shared_ptr<Ledger> ledger) {
  return std::make_unique<MemoryStateStore>(shape, device, host, ledger);
}

std::vector<StatePiece> pieces_of(const layout::Layout& layout, int page, std::int64_t begin, std::int64_t end) {
  std::vector<StatePiece> pieces;
  for (const auto& segment : layout.segments(page, begin, end)) {
    // The maximum number of blocks of the earlier pieces: each may end in a partial block.
    const std::int64_t offset = segment.page_offset - begin;
    const auto before = static_cast<std::int64_t>(pieces.size());
    pieces.push_back({segment.parameter, segment.parameter_offset, offset, segment.numel,
                      offset / optim::kPackedBlockNumel + before});
  }
  return pieces;
}

std::int64_t StateShape::bytes(int page) const {
  const auto index = static_cast<std::size_t>(page);
  return (masters[index] ? 4 * numel[index] : 0) + states * state_bytes(dtype, numel[index], blocks[index]);
}

StateArrays StateShape::arrays(int page, std::byte* memory) const {
  const auto index = static_cast<std::size_t>(page);
  StateArrays arrays;
  arrays.memory = {memory, static_cast<std::size_t>(bytes(page))};
  arrays.dtype = dtype;
  arrays.squares = squares;
  if (masters[index]) arrays.master = reinterpret_cast<float*>(std::exchange(memory, memory + 4 * numel[index]));
  for (std::size_t i = 0; i < static_cast<std::size_t>(states); ++i) {
    std::byte* data = std::exchange(memory, memory + state_bytes(dtype, numel[index], blocks[index]));
    if (dtype == StateDtype::kFloat32) {
      arrays.states[i] = reinterpret_cast<float*>(data);
    } else {
      auto* exponents = reinterpret_cast<std::uint8_t*>(data + numel[index]);
      arrays.packed[i] = {data, dtype == StateDtype::kInt8 ? exponents : nullptr};
    }
  }
  return arrays;
}

StateArrays StateArrays::moved_to(std::byte* target, c10::Device target_device) const {
  StateArrays moved = *this;
  const auto move = [&]<typename Element>(Element*& array) {
    if (array == nullptr) return;
    void* const place = target + (reinterpret_cast<std::byte*>(array) - memory.data());
    array = static_cast<Element*>(place);
  };
  move(moved.master);
  for (float*& state : moved.states) move(state);
  for (auto& state : moved.packed) {
    move(state.data);
    move(state.exponents);
  }
  moved.memory = {target, memory.size()};
  moved.device = target_device;
  return moved;
}

HeldState::HeldState(OptimizerStateStore& home, int page, Access access)
    : state_store_(home),
      page_(page),
      access_(access),
      exceptions_(std::uncaught_exceptions()),
      arrays_(home.acquire(page)) {}

HeldState::~HeldState() noexcept(false) {
  const bool failing = std::uncaught_exceptions() > exceptions_;
  try {
    state_store_.release(page_, access_ == Access::kWrite);
  } catch (...) {
    if (!failing) throw;  // otherwise the current exception is more informative
  }
}

void HeldState::read(int index, const StatePiece& piece, std::int64_t begin, float* out, std::int64_t numel) const {
  // Only whole blocks can be unpacked.
  const std::int64_t first = begin / optim::kPackedBlockNumel * optim::kPackedBlockNumel;
  std::vector<float> wide(static_cast<std::size_t>(begin - first + numel));
  const auto count = static_cast<std::int64_t>(wide.size());
  const StateDtype dtype = arrays_.dtype;
  PackedOnHost packed(dtype, count);
  copy_packed(packed.state(), c10::kCPU, place(index, piece).from(first, dtype), device(), dtype, count);
  optim::unpack(packed.state(), dtype, arrays_.squares[static_cast<std::size_t>(index)], wide.data(), count);
  std::copy_n(wide.data() + (begin - first), numel, out);
}

void HeldState::write(int index, const StatePiece& piece, const float* values, std::uint64_t key) const {
  const StateDtype dtype = arrays_.dtype;
  PackedOnHost packed(dtype, piece.numel);
  optim::pack(values, packed.state(), dtype, arrays_.squares[static_cast<std::size_t>(index)], piece.numel, key, 0);
  copy_packed(place(index, piece), device(), packed.state(), c10::kCPU, dtype, piece.numel);
}

optim::PackedState HeldState::place(int index, const StatePiece& piece) const {
  const optim::PackedState& all = arrays_.packed[static_cast<std::size_t>(index)];
  auto state = all.from(piece.offset, arrays_.dtype);
  if (all.exponents != nullptr) state.exponents = all.exponents + piece.block;
  return state;
}

}  // namespace zeropage::engine
