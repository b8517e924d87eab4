#include "zeropage/session/tensors_on_drive.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <filesystem>

namespace zeropage::session {
namespace {

io::StoreOptions options_for_tensors() {
  io::StoreOptions options;
  options.folders = {testing::TempDir()};
  return options;
}

at::Tensor numbers(std::int64_t count, float first = 0) { return at::arange(count, at::kFloat).add_(first); }

// Catches bytes that are lost or mixed up between tensors, also of tensors of several tiles, and memory that is kept.
TEST(TensorsOnDrive, BytesReturn) {
  const auto ledger = std::make_shared<Ledger>();
  TensorsOnDrive drive(options_for_tensors(), ledger);
  const at::Tensor large = numbers(3 << 20);  // 12 MiB
  const at::Tensor transposed = numbers(4096, 7).reshape({64, 64}).t().clone(at::MemoryFormat::Preserve);
  const at::Tensor whole = numbers(2048).to(at::kLong);
  for (const auto& tensor : {large, transposed, whole}) drive.put(tensor, "state");
  for (const auto& tensor : {large, transposed, whole}) EXPECT_TRUE(drive.has(tensor));
  EXPECT_EQ(large.numel(), 3 << 20);
  EXPECT_TRUE(at::equal(drive.read(transposed), numbers(4096, 7).reshape({64, 64}).t()));
  EXPECT_TRUE(drive.has(transposed));
  drive.get(large);
  EXPECT_FALSE(drive.has(large));
  EXPECT_TRUE(at::equal(large, numbers(3 << 20)));
  large.add_(1);
  drive.put(large, "state");
  drive.get(large);
  drive.get(transposed);
  EXPECT_TRUE(at::equal(large, numbers(3 << 20, 1)));
  EXPECT_EQ(transposed.strides().vec(), (std::vector<std::int64_t>{1, 64}));
  EXPECT_TRUE(at::equal(drive.read(whole), numbers(2048).to(at::kLong)));
  EXPECT_EQ(ledger->current_bytes(MemoryKind::kBuffers, Tier::kHost), io::Scratch::kMemoryBytes);
}

// Catches an access that finds other bytes instead of an error.
TEST(TensorsOnDrive, AnAccessSaysWhereTheBytesAre) {
  TensorsOnDrive drive(options_for_tensors(), nullptr);
  const at::Tensor tensor = numbers(2048);
  drive.put(tensor, "state");
  try {
    tensor.add_(1);
    FAIL() << "nothing was raised";
  } catch (const std::exception& error) {
    EXPECT_NE(std::string(error.what()).find("is on a drive"), std::string::npos) << error.what();
  }
}

// Catches tensors that lose their connection to others: a view would keep the old values.
TEST(TensorsOnDrive, SharedAndSmallTensorsStay) {
  TensorsOnDrive drive(options_for_tensors(), nullptr);
  const at::Tensor base = numbers(4096);
  const at::Tensor view = base.narrow(0, 0, 2048);
  const at::Tensor small = numbers(8);
  for (const auto& tensor : {base, view, small}) {
    drive.put(tensor, "state");
    EXPECT_FALSE(drive.has(tensor));
    EXPECT_TRUE(drive.read(tensor).is_same(tensor));
  }
}

// Catches a new tensor that gets the bytes of a freed one, which had the same address.
TEST(TensorsOnDrive, FreedTensorsAreForgotten) {
  TensorsOnDrive drive(options_for_tensors(), nullptr);
  for (int i = 0; i < 50; ++i) {
    const at::Tensor tensor = numbers(2048, static_cast<float>(i));
    EXPECT_FALSE(drive.has(tensor));
    drive.put(tensor, "state");
    EXPECT_TRUE(at::equal(drive.read(tensor), numbers(2048, static_cast<float>(i))));
  }
}

}  // namespace
}  // namespace zeropage::session
