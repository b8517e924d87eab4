// Which operators reach a page table, and with what, where the page table only takes notes.
#include "zeropage/paging/fallback.h"

#include <ATen/ops/add.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/ones.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "zeropage/base/error.h"
#include "zeropage/paging/parameter_link.h"

namespace zeropage::paging {
namespace {

using Notes = std::vector<std::string>;

class NotingTable final : public PageTable {
 public:
  void touch(int page, bool writes, std::string_view user) override {
    if (page == failing_page) throw TimeoutError("no answer");
    notes.push_back(std::string(writes ? "write " : "read ") + std::to_string(page) + " " + std::string(user));
  }
  void unpin(int page) override { notes.push_back("unpin " + std::to_string(page)); }
  void note_write(int page) override { notes.push_back("written " + std::to_string(page)); }
  void explain_absence(int, const std::string&) override {}

  Notes notes;
  int failing_page = -1;
};

class Fallback : public testing::Test {
 protected:
  Fallback() {
    ensure_fallback();
    handle_->pager = &table_;
  }

  /// A parameter of 4 x 4 ones on `page`.
  at::Tensor parameter(int page, bool paged = true) {
    memories_.push_back(std::make_unique<float[]>(16));
    std::fill_n(memories_.back().get(), 16, 1.0F);
    auto link = std::make_unique<ParameterLink>();
    link->handle = handle_;
    link->page = page;
    link->paged = paged;
    const auto storage = make_linked_storage(std::move(link), memories_.back().get(), 64, c10::Device(c10::kCPU));
    auto tensor = at::empty({0}, at::kFloat).set_(storage, 0, {4, 4}, {4, 1});
    mark(tensor);
    return tensor;
  }

  /// What was noted since the last call.
  Notes notes() { return std::exchange(table_.notes, {}); }

  NotingTable table_;
  std::shared_ptr<PagerHandle> handle_ = std::make_shared<PagerHandle>();
  std::vector<std::unique_ptr<float[]>> memories_;
};

// Catches operators on absent pages, and pages that stay pinned.
TEST_F(Fallback, AnOperatorPinsThePagesOfItsArguments) {
  const auto p = parameter(3);
  EXPECT_EQ(at::add(p, p).sum().item<float>(), 32);
  EXPECT_EQ(notes(), (Notes{"read 3 aten::add", "read 3 aten::add", "unpin 3", "unpin 3"}));
}

// Catches pages that are gathered to make a view, and views that are read without their page.
TEST_F(Fallback, ViewsUseNoPageUntilTheyAreRead) {
  const auto p = parameter(0);
  const auto view = p.detach().t().narrow(0, 1, 2).view({2, 2, 2});
  EXPECT_EQ(notes(), Notes{});
  EXPECT_EQ(view.sum().item<float>(), 8);
  EXPECT_EQ(notes(), (Notes{"read 0 aten::sum", "unpin 0"}));
}

// Catches writes that are lost with the next eviction.
TEST_F(Fallback, AWrittenArgumentIsNoted) {
  const auto p = parameter(0);
  const auto q = parameter(1);
  p.copy_(q);
  EXPECT_EQ(notes(), (Notes{"write 0 aten::copy_", "read 1 aten::copy_", "unpin 0", "unpin 1"}));
}

// Catches parameters in lists of tensors.
TEST_F(Fallback, ListsOfTensorsAreArgumentsToo) {
  EXPECT_EQ(at::cat({parameter(0), at::ones({1, 4}), parameter(1)}).size(0), 9);
  EXPECT_EQ(notes(), (Notes{"read 0 aten::cat", "read 1 aten::cat", "unpin 0", "unpin 1"}));
}

// Catches a fault for each operator inside of an operator.
TEST_F(Fallback, OnlyTheOutermostOperatorFaults) {
  EXPECT_EQ(at::linear(at::ones({2, 4}), parameter(0)).sum().item<float>(), 32);
  EXPECT_EQ(notes(), (Notes{"read 0 aten::linear", "unpin 0"}));
}

// Catches pages that are never evicted again after an error of a program.
TEST_F(Fallback, AnOperatorThatThrowsUnpins) {
  const auto p = parameter(0);
  EXPECT_THROW(at::mm(p, at::ones({3, 3})), c10::Error);
  EXPECT_EQ(notes(), (Notes{"read 0 aten::mm", "unpin 0"}));
}

// Catches an operator that reads garbage because its page did not arrive, and pins of its other pages that stay.
TEST_F(Fallback, AFailedGatherReachesTheCallerAndTheOperatorDoesNotRun) {
  const auto p = parameter(0);
  table_.failing_page = 1;
  EXPECT_THROW(p.copy_(at::add(parameter(1), 1)), TimeoutError);
  EXPECT_THROW(p.mul_(parameter(1)), TimeoutError);
  EXPECT_EQ(notes(), (Notes{"write 0 aten::mul_", "unpin 0"}));
  EXPECT_EQ(memories_.front()[0], 1);
}

// Catches whole pages that cost pins, and masters that do not follow a write.
TEST_F(Fallback, WholePagesAreToldOfWritesOnly) {
  const auto p = parameter(5, /*paged=*/false);
  (void)at::add(p, p);
  EXPECT_EQ(notes(), Notes{});
  p.zero_();
  EXPECT_EQ(notes(), Notes{"written 5"});
}

// Catches a call of a pager that is gone.
TEST_F(Fallback, WithoutAPageTableOperatorsRun) {
  const auto p = parameter(0);
  handle_->pager = nullptr;
  EXPECT_EQ(p.sum().item<float>(), 16);
  EXPECT_EQ(notes(), Notes{});
}

class NotingWatcher final : public ResultWatcher {
 public:
  void take(const at::Tensor&, std::string_view op) override { operators.emplace_back(op); }
  Notes operators;
};

// Catches new tensors that an Init scope does not see, and tensors of others that it would take.
TEST_F(Fallback, AWatcherGetsNewTensorsOnly) {
  const auto before = at::ones({4});
  const auto watcher = std::make_shared<NotingWatcher>();
  watch_results(watcher);
  auto made = at::empty({4}, at::kFloat);
  made.fill_(1);
  const auto view = made.narrow(0, 1, 2);
  const auto sum = at::add(before, made);
  watch_results(nullptr);
  (void)at::add(before, sum);
  EXPECT_EQ(watcher->operators, (Notes{"aten::empty", "aten::add"}));
}

}  // namespace
}  // namespace zeropage::paging
