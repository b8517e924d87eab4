/// \file
/// torch's wheels hold Gloo, but not the headers that c10d/ProcessGroupGloo.hpp includes. These outlines name what that
/// header names, so that c10d_job.cc can make such a process group; nothing here is ever made or called by our code.
#pragma once

#include <chrono>

namespace gloo {

class Context {
 public:
  void setTimeout(std::chrono::milliseconds timeout);
};

}  // namespace gloo
