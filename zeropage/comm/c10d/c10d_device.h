/// \file
/// The memory and the streams of a device, for ranks in groups over process groups.
#pragma once

#include <c10/core/Device.h>

#include <functional>
#include <memory>

#include "zeropage/comm/hosts/group_device.h"

namespace zeropage::comm {

/// `orders_streams`: whether the process groups order its streams. `order_after` orders the current stream after a
/// collective of theirs, which may still be compared with the peers'.
std::shared_ptr<GroupDevice> make_c10d_device(c10::Device device, bool orders_streams,
                                              std::function<void(Work&)> order_after);

}  // namespace zeropage::comm
