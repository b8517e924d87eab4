#include "zeropage/comm/c10d/c10d_aborts.h"

#include <exception>
#include <utility>

namespace zeropage::comm {
namespace {

const char* const kAbortKey = "zeropage/abort";

class StoreAborts final : public Aborts {
 public:
  explicit StoreAborts(c10::intrusive_ptr<c10d::Store> store) : store_(std::move(store)) {}

  void publish(const std::string& reason) noexcept override {
    try {
      store_->compareSet(kAbortKey, std::string(), reason);
    } catch (const std::exception&) {
      // The peers then notice it by closed connections, or by their timeout.
    }
  }
  std::string reason() noexcept override {
    try {
      return store_->check({kAbortKey}) ? store_->get_to_str(kAbortKey) : "";
    } catch (const std::exception&) {
      return "";  // without the store only the backend's error is available
    }
  }

 private:
  const c10::intrusive_ptr<c10d::Store> store_;
};

}  // namespace

std::shared_ptr<Aborts> store_aborts(c10::intrusive_ptr<c10d::Store> store) {
  return store ? std::make_shared<StoreAborts>(std::move(store)) : nullptr;
}

}  // namespace zeropage::comm
