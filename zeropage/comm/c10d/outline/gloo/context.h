/// \file
/// torch's wheels include Gloo, but not the headers that c10d/ProcessGroupGloo.hpp includes. These outlines declare the
/// names used by that header, so that c10d_job.cc can make such a process group; our code never creates or calls
/// anything declared here.
#pragma once

#include <chrono>

namespace gloo {

class Context {
 public:
  void setTimeout(std::chrono::milliseconds timeout);
};

}  // namespace gloo
