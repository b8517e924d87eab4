#include "zeropage/comm/testing/communicator_conformance.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "zeropage/base/error.h"

namespace zeropage::comm {
namespace {

// The scalar version of the kernels: one element at a time, with arithmetic instead of bit operations.

double decode(const std::byte* at, DType dtype) {
  if (dtype == DType::kFloat64) {
    double value;
    std::memcpy(&value, at, sizeof(value));
    return value;
  }
  std::uint32_t bits = 0;
  std::memcpy(&bits, at, static_cast<std::size_t>(element_bytes(dtype)));
  if (dtype == DType::kFloat32) return std::bit_cast<float>(bits);
  if (dtype == DType::kBFloat16) return std::bit_cast<float>(bits << 16);
  const int exponent = static_cast<int>(bits >> 10 & 31);
  const double mantissa = static_cast<double>(bits & 1023);
  const double sign = bits & 0x8000 ? -1 : 1;
  if (exponent == 31) return mantissa == 0 ? sign * INFINITY : NAN;
  return sign * (exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(mantissa + 1024, exponent - 25));
}

/// `value` rounded to a format with `digits` bits of mantissa and the given smallest and largest exponents.
double round_to(double value, int digits, int exponent_min, double largest) {
  if (value == 0 || !std::isfinite(value)) return value;
  int exponent = 0;
  std::frexp(value, &exponent);
  const int unit = std::max(exponent, exponent_min) - digits;
  const double rounded = std::ldexp(std::nearbyint(std::ldexp(value, -unit)), unit);
  return std::abs(rounded) > largest ? std::copysign(INFINITY, value) : rounded;
}

double round_to(double value, DType dtype) {
  switch (dtype) {
    case DType::kFloat32: return static_cast<float>(value);
    case DType::kBFloat16: return round_to(value, 8, -125, std::ldexp(255, 120));
    case DType::kFloat16: return round_to(value, 11, -13, 65504);
    default: return value;
  }
}

void encode(double value, DType dtype, std::byte* at) {
  if (dtype == DType::kFloat64) {
    std::memcpy(at, &value, sizeof(value));
    return;
  }
  const double rounded = round_to(value, dtype);
  if (dtype == DType::kFloat16) {
    const std::uint16_t sign = std::signbit(value) ? 0x8000 : 0;
    const double magnitude = std::abs(rounded);
    std::uint16_t bits = 0;
    if (std::isnan(rounded)) {
      bits = 0x7e00;
    } else if (std::isinf(rounded)) {
      bits = 0x7c00;
    } else if (magnitude < std::ldexp(1, -14)) {
      bits = static_cast<std::uint16_t>(std::ldexp(magnitude, 24));
    } else {
      int exponent = 0;
      const double fraction = std::frexp(magnitude, &exponent);
      bits = static_cast<std::uint16_t>((exponent + 14) * 1024 + static_cast<int>(std::ldexp(fraction, 11)) - 1024);
    }
    bits |= sign;
    std::memcpy(at, &bits, sizeof(bits));
    return;
  }
  auto bits = std::bit_cast<std::uint32_t>(static_cast<float>(rounded));
  if (dtype == DType::kBFloat16) bits >>= 16;
  std::memcpy(at, &bits, static_cast<std::size_t>(element_bytes(dtype)));
}

/// Element `index` of rank `rank`: many magnitudes and signs, so that the order of summation affects the last bits.
double element(int rank, std::int64_t index) {
  std::uint64_t state = static_cast<std::uint64_t>(index) * 0x9e3779b97f4a7c15u + static_cast<std::uint64_t>(rank) + 1;
  state = (state ^ state >> 31) * 0xbf58476d1ce4e5b9u;
  state ^= state >> 29;
  if (state % 97 == 0) return 60000;  // sums overflow fp16
  if (state % 89 == 0) return rank == 0 ? NAN : 1;
  const double unit = static_cast<double>(state >> 40) / static_cast<double>(1 << 24) - 0.5;
  return std::ldexp(unit, static_cast<int>(state % 30) - 20);
}

/// Large enough for every transport to split it into several pieces.
constexpr std::int64_t kLargeNumel = 300007;

using Buffer = std::vector<std::byte>;

Buffer make_input(int rank, std::int64_t numel, DType dtype) {
  Buffer buffer(static_cast<std::size_t>(numel * element_bytes(dtype)));
  for (std::int64_t i = 0; i < numel; ++i) encode(element(rank, i), dtype, buffer.data() + i * element_bytes(dtype));
  return buffer;
}

/// The expected sums of elements [first, first + numel) over all ranks; `before` is added when accumulating.
Buffer expected_sums(int size, std::int64_t first, std::int64_t numel, DType in_dtype, DType out_dtype,
                     const std::vector<float>* before) {
  const DType sum_dtype = in_dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
  Buffer out(static_cast<std::size_t>(numel * element_bytes(out_dtype)));
  for (std::int64_t i = 0; i < numel; ++i) {
    double sum = 0;
    for (int r = 0; r < size; ++r) {
      std::byte raw[8];
      encode(element(r, first + i), in_dtype, raw);
      const double term = decode(raw, in_dtype);
      sum = r == 0 ? term : round_to(sum + term, sum_dtype);
    }
    if (before != nullptr) sum = (*before)[static_cast<std::size_t>(i)] + sum;
    encode(sum, out_dtype, out.data() + i * element_bytes(out_dtype));
  }
  return out;
}

/// Index of the first element that differs in its bits (every NaN equals every other), or -1.
std::int64_t first_difference(const std::byte* got, const Buffer& expected, DType dtype) {
  const std::int64_t bytes = element_bytes(dtype);
  const auto numel = static_cast<std::int64_t>(expected.size()) / bytes;
  for (std::int64_t i = 0; i < numel; ++i) {
    const std::byte* wanted = expected.data() + i * bytes;
    if (std::memcmp(got + i * bytes, wanted, static_cast<std::size_t>(bytes)) == 0) continue;
    if (!std::isnan(decode(wanted, dtype)) || !std::isnan(decode(got + i * bytes, dtype))) return i;
  }
  return -1;
}

bool same_bytes(const std::byte* got, const Buffer& expected) {
  return expected.empty() || std::memcmp(got, expected.data(), expected.size()) == 0;
}

void copy(std::byte* to, const Buffer& from) {
  if (!from.empty()) std::memcpy(to, from.data(), from.size());
}

/// Checks a reduction's output when a piece of it is reported as final.
class Told {
 public:
  Told(const std::byte* out, std::int64_t numel, DType dtype)
      : out_(out), numel_(numel), element_(element_bytes(dtype)), seen_(static_cast<std::size_t>(numel * element_)) {}

  OnReduced listener() {
    return [this](std::int64_t begin, std::int64_t numel) {
      in_order_ &= begin == told_numel_ && numel >= 0 && begin + numel <= numel_;
      if (!in_order_ || numel == 0) return;  // memcpy does not accept null, even for zero bytes
      std::memcpy(seen_.data() + begin * element_, out_ + begin * element_, static_cast<std::size_t>(numel * element_));
      told_numel_ += numel;
    };
  }

  /// The error: elements were not reported once and in order, or before they were final. Empty: none.
  std::string complaint() const {
    if (!in_order_) return fmt::format("after the first {} of {} elements, told of others", told_numel_, numel_);
    if (told_numel_ != numel_) return fmt::format("told of {} elements of {}", told_numel_, numel_);
    return same_bytes(out_, seen_) ? "" : "told of values that were not final";
  }

 private:
  const std::byte* out_;
  const std::int64_t numel_;
  const std::int64_t element_;
  Buffer seen_;
  std::int64_t told_numel_ = 0;
  bool in_order_ = true;
};

/// One run of the suite on one rank.
class Suite {
 public:
  explicit Suite(Communicator& communicator)
      : communicator_(communicator), rank_(communicator.rank()), size_(communicator.size()) {}

  void run() {
    for (const std::int64_t numel : {0, 1, 3, 63, 1000, 4097, 30001}) {
      gathers_shards(numel);
      exchanges_parts(numel);
      broadcasts(numel);
      for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kFloat64}) {
        all_reduces(numel, dtype, /*listens=*/false);
        all_reduces(numel / size_ * size_, dtype, /*listens=*/true);
        reduce_scatters(numel, dtype, dtype, false);
        if (dtype != DType::kFloat32) reduce_scatters(numel, dtype, DType::kFloat32, false);
        reduce_scatters(numel, dtype, DType::kFloat32, true);
      }
    }
    gathers_shards(kLargeNumel);
    exchanges_parts(kLargeNumel);
    broadcasts(kLargeNumel);
    all_reduces(kLargeNumel, DType::kFloat32, /*listens=*/false);
    all_reduces(kLargeNumel / size_ * size_, DType::kFloat32, /*listens=*/true);
    reduce_scatters(kLargeNumel / size_, DType::kFloat32, DType::kFloat32, true);
    many_at_once();
    memory_reads_as_zeros();
    if (communicator_.one_sided()) peers_read_memory();
    small_values();
    communicator_.barrier({"conformance ends", 0});
  }

 private:
  template <typename... Values>
  void check(bool holds, fmt::format_string<Values...> what, Values&&... values) const {
    if (holds) return;
    throw Error(fmt::format("communicator conformance, rank {} of {}: {}", rank_, size_,
                            fmt::format(what, std::forward<Values>(values)...)));
  }

  /// Runs `body(buffer, name)` with private memory and with allocated memory.
  template <typename Body>
  void with_each_memory(std::int64_t bytes, const Body& body) {
    Buffer own(static_cast<std::size_t>(bytes) + 1);
    body(own.data(), "private");
    const auto memory = communicator_.allocate(bytes, "conformance");
    body(memory->data(), "allocated");
    communicator_.barrier({"conformance memory", bytes});
  }

  void gathers_shards(std::int64_t numel) {
    const std::int64_t bytes = numel * 2;
    const Buffer shard = make_input(rank_, numel, DType::kBFloat16);
    const auto check_whole = [&](const std::byte* whole, const char* kind) {
      for (int r = 0; r < size_; ++r) {
        check(same_bytes(whole + r * bytes, make_input(r, numel, DType::kBFloat16)),
              "all_gather of {} bytes ({} memory): wrong shard of rank {}", bytes, kind, r);
      }
    };
    with_each_memory(bytes, [&](std::byte* memory, const char* kind) {
      copy(memory, shard);
      Buffer whole(shard.size() * static_cast<std::size_t>(size_));
      communicator_.all_gather(memory, whole.data(), bytes, {"gather", bytes})->wait();
      check_whole(whole.data(), kind);
    });
    with_each_memory(bytes * size_, [&](std::byte* whole, const char* kind) {
      std::byte* part = whole + rank_ * bytes;
      copy(part, shard);
      communicator_.all_gather(part, whole, bytes, {"gather in place", bytes})->wait();
      check_whole(whole, kind);
    });
  }

  /// Parts of equal sizes, of sizes that grow with both ranks, and from few ranks to few. Each identifies its sender
  /// and its receiver, so that exchanged parts are detected.
  void exchanges_parts(std::int64_t numel) {
    exchanges_parts("equal", [=](int, int) { return numel; });
    exchanges_parts("different", [=](int from, int to) { return numel + 3 * from + 64 * to; });
    exchanges_parts("to the next", [=](int from, int to) { return to == from + 1 ? numel : 0; });
    exchanges_parts("from the last", [=, this](int from, int to) { return from == size_ - 1 ? numel + to : 0; });
  }

  void exchanges_parts(const char* sizes, const PartBytes& numel) {
    const auto bytes = [=](int from, int to) { return 2 * numel(from, to); };
    const auto part = [&](int from, int to) {
      return make_input(from * size_ + to, numel(from, to), DType::kBFloat16);
    };
    Buffer sent;
    Buffer expected;
    std::int64_t largest = 0;
    for (int r = 0; r < size_; ++r) {
      for (const auto& [buffer, bytes_of_r] :
           {std::pair(&sent, part(rank_, r)), std::pair(&expected, part(r, rank_))}) {
        buffer->insert(buffer->end(), bytes_of_r.begin(), bytes_of_r.end());
      }
      for (int q = 0; q < size_; ++q) largest = std::max(largest, bytes(q, r));
    }
    with_each_memory(largest * size_, [&](std::byte* memory, const char* kind) {
      copy(memory, sent);
      Buffer received(expected.size());
      communicator_.all_to_all(memory, received.data(), bytes, {sizes, largest})->wait();
      check(same_bytes(received.data(), expected), "all_to_all of {} parts, {} bytes at most ({} memory)", sizes,
            largest, kind);
      check(same_bytes(memory, sent), "all_to_all of {} parts ({} memory): what was sent changed", sizes, kind);
    });
  }

  void broadcasts(std::int64_t numel) {
    for (int root = 0; root < size_; ++root) {
      const Buffer expected = make_input(root, numel, DType::kBFloat16);
      with_each_memory(numel * 2, [&](std::byte* data, const char* kind) {
        std::fill_n(data, numel * 2, std::byte{0xee});
        if (rank_ == root) copy(data, expected);
        communicator_.broadcast(data, numel * 2, root, {"broadcast", root})->wait();
        check(same_bytes(data, expected), "broadcast of {} bytes ({} memory) from rank {}", numel * 2, kind, root);
      });
    }
  }

  void check_sums(const std::byte* got, const Buffer& expected, DType dtype, const std::string& what) const {
    const std::int64_t i = first_difference(got, expected, dtype);
    if (i < 0) return;
    const std::int64_t offset = i * element_bytes(dtype);
    check(false, "{}: element {} of {} bytes is {}, expected {}", what, i, expected.size(), decode(got + offset, dtype),
          decode(expected.data() + offset, dtype));
  }

  void all_reduces(std::int64_t numel, DType dtype, bool listens) {
    const Buffer input = make_input(rank_, numel, dtype);
    const Buffer expected = expected_sums(size_, 0, numel, dtype, dtype, nullptr);
    with_each_memory(static_cast<std::int64_t>(input.size()), [&](std::byte* data, const char* kind) {
      copy(data, input);
      const std::string what = fmt::format("all_reduce of {} {} ({} memory)", numel, dtype_name(dtype), kind);
      const std::int64_t part = numel / size_;
      Told told(data + rank_ * part * element_bytes(dtype), part, dtype);
      communicator_.all_reduce(data, numel, dtype, {"reduce", numel}, listens ? told.listener() : OnReduced())->wait();
      check_sums(data, expected, dtype, what);
      if (listens) check(told.complaint().empty(), "{}: {}", what, told.complaint());
    });
  }

  void reduce_scatters(std::int64_t numel, DType in_dtype, DType out_dtype, bool accumulate) {
    const Buffer input = make_input(rank_, numel * size_, in_dtype);
    const std::int64_t first = numel * rank_;
    std::vector<float> before(static_cast<std::size_t>(numel));
    for (std::size_t i = 0; i < before.size(); ++i) before[i] = static_cast<float>(i % 7) / 3;
    const Buffer expected = expected_sums(size_, first, numel, in_dtype, out_dtype, accumulate ? &before : nullptr);
    with_each_memory(static_cast<std::int64_t>(input.size()), [&](std::byte* whole, const char* kind) {
      const std::string what = fmt::format("reduce_scatter, {} to {}{} ({} memory)", dtype_name(in_dtype),
                                           dtype_name(out_dtype), accumulate ? ", accumulating" : "", kind);
      copy(whole, input);
      Buffer out(expected.size());
      if (accumulate && numel > 0) std::memcpy(out.data(), before.data(), out.size());
      Told told(out.data(), numel, out_dtype);
      communicator_
          .reduce_scatter(whole, out.data(), numel, in_dtype, out_dtype, accumulate, {"scatter", numel},
                          told.listener())
          ->wait();
      check_sums(out.data(), expected, out_dtype, what);
      check(told.complaint().empty(), "{}: {}", what, told.complaint());
      check(same_bytes(whole, input), "{}: the input changed", what);
      if (accumulate || in_dtype != out_dtype) return;
      std::byte* part = whole + first * element_bytes(in_dtype);
      communicator_.reduce_scatter(whole, part, numel, in_dtype, out_dtype, false, {"scatter in place", numel}, {})
          ->wait();
      check_sums(part, expected, out_dtype, what + " in place");
    });
  }

  /// Works complete in any order of waiting, and a dropped one causes no error.
  void many_at_once() {
    constexpr int kWorks = 100;
    constexpr std::int64_t kNumel = 3000;
    std::vector<Buffer> wholes(kWorks, Buffer(static_cast<std::size_t>(kNumel * size_)));
    const Buffer mine(kNumel, static_cast<std::byte>(rank_ + 1));
    std::vector<WorkPtr> works;
    for (int i = 0; i < kWorks; ++i) {
      const std::int64_t bytes = i % 3 == 0 ? 8 : kNumel;
      works.push_back(
          communicator_.all_gather(mine.data(), wholes[static_cast<std::size_t>(i)].data(), bytes, {"many", i}));
    }
    works[kWorks / 2].reset();
    for (int i = kWorks - 1; i >= 0; --i) {
      if (works[static_cast<std::size_t>(i)]) works[static_cast<std::size_t>(i)]->wait();
      const std::int64_t bytes = i % 3 == 0 ? 8 : kNumel;
      for (int r = 0; r < size_; ++r) {
        check(wholes[static_cast<std::size_t>(i)][static_cast<std::size_t>((r + 1) * bytes - 1)] ==
                  static_cast<std::byte>(r + 1),
              "gather {} of {} started together", i, kWorks);
      }
    }
  }

  void memory_reads_as_zeros() {
    constexpr std::int64_t kBytes = 3 << 20;
    const auto memory = communicator_.allocate(kBytes, "discarded");
    check(memory->bytes() == kBytes, "allocate: size");
    std::byte* data = memory->data();
    check(data[0] == std::byte{0} && data[kBytes - 1] == std::byte{0}, "allocated memory starts as zeros");
    std::memset(data, 1, kBytes);
    memory->discard(1, kBytes - 2);
    check(data[0] == std::byte{1} && data[kBytes - 1] == std::byte{1}, "discard rounds inwards");
    check(data[kBytes / 2] == std::byte{0}, "discarded memory reads as zeros");
    communicator_.barrier({"discarded", 0});
  }

  void peers_read_memory() {
    const auto memory = communicator_.allocate(1000, "one-sided");
    memory->data()[777] = static_cast<std::byte>(rank_ + 1);
    communicator_.barrier({"one-sided writes", 0});
    for (int r = 0; r < size_; ++r) {
      const std::byte* theirs = communicator_.peer_address(r, memory->data() + 777);
      communicator_.wait_until([&] { return *theirs == static_cast<std::byte>(r + 1); }, r, "one-sided read");
    }
    communicator_.barrier({"one-sided reads", 0});
  }

  void small_values() {
    check(communicator_.timeout().count() > 0, "timeout");
    communicator_.throw_if_aborted();
    const std::string mine = fmt::format("rank{:04}", rank_);
    const std::string all = all_gather_small(communicator_, mine, {"small", 0});
    for (int r = 0; r < size_; ++r) {
      check(all.substr(static_cast<std::size_t>(r) * mine.size(), mine.size()) == fmt::format("rank{:04}", r),
            "all_gather_small");
    }
    check(all_gather_small(communicator_, "", {"nothing", 0}).empty(), "all_gather_small of nothing");
  }

  Communicator& communicator_;
  const int rank_;
  const int size_;
};

}  // namespace

void run_conformance(Communicator& communicator) { Suite(communicator).run(); }

}  // namespace zeropage::comm
