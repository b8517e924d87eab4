/// \file
/// What this host offers: devices, a Python, a port.
#pragma once

#include <string>
#include <vector>

#include "zeropage/base/descriptor.h"

namespace zeropage::launch {

/// The GPUs a process started here sees: the entries of CUDA_VISIBLE_DEVICES where it is set (`visible`, else null), up
/// to the first one that is not valid ("" and "-1" hide all, as the driver has it); otherwise 0, 1, ... for every
/// nvidia<N> in `device_folder` (/dev).
std::vector<std::string> visible_gpus(const std::string& device_folder, const char* visible);

/// The active Python: that of $VIRTUAL_ENV, else a python3 beside this command (`argv0`, looked up in PATH as the shell
/// did), else the python3 or python in PATH. Errors: ConfigError when there is none.
std::string find_python(const std::string& argv0);

/// Python's option without which modules in the current folder hide those that are installed. Every start of Python has
/// it, but those of the user's own script.
inline constexpr const char* kSafePath = "-P";

/// Checks that the script can be started here: a program with `no_python`, otherwise a file; modules are Python's to
/// find.
/// Errors: ConfigError.
void check_script(const std::string& script, bool module, bool no_python);

/// The installed torch of `python`, "none" without one. Cost: a start of Python. Errors: IoError when that does not
/// answer.
std::string torch_version(const std::string& python);

/// Where others reach this host.
struct HostAddress {
  std::string address;
  std::string network;  ///< the interface's name
};

/// The address at which an ssh from elsewhere came in (`ssh_connection`: $SSH_CONNECTION or null), else the first one
/// that is no loopback's, else 127.0.0.1.
HostAddress host_address(const char* ssh_connection);

/// The program `name` as the shell would find it: itself if it has a slash, else through PATH; empty if there is none.
std::string find_program(const std::string& name);

/// A port that was free a moment ago. As long as `claim` lives no other launcher on this host takes it.
struct Port {
  int number = 0;
  Descriptor claim;
};

/// `wanted`, or a free one when something listens there or another launcher has claimed it.
/// Errors: IoError when no port is to be had.
Port claim_port(int wanted);

/// 128 random bits from the kernel, in hexadecimal: names this job. Errors: IoError.
std::string make_job_token();

}  // namespace zeropage::launch
