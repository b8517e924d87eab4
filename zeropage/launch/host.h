/// \file
/// The resources of this host: devices, a Python, a port.
#pragma once

#include <string>
#include <vector>

#include "zeropage/base/descriptor.h"

namespace zeropage::launch {

/// The GPUs that a process here would see: the entries of CUDA_VISIBLE_DEVICES if it is set (`visible`; null if not),
/// up to the first invalid one ("" and "-1" hide all, as in the driver); otherwise 0, 1, ... for every nvidia<N> in
/// `device_folder` (/dev).
std::vector<std::string> visible_gpus(const std::string& device_folder, const char* visible);

/// The active Python: the one of $VIRTUAL_ENV; otherwise a python3 in the folder of this command (`argv0`, found in
/// PATH like in the shell); otherwise the python3 or python in PATH. Errors: ConfigError when there is none.
std::string find_python(const std::string& argv0);

/// Python's option that keeps modules in the current folder from hiding installed ones. Every start of Python uses it,
/// except for the user's own script.
inline constexpr const char* kSafePath = "-P";

/// Checks that the script can be started here: a program with `no_python`, otherwise a file. Python finds modules
/// itself.
/// Errors: ConfigError.
void check_script(const std::string& script, bool module, bool no_python);

/// The version of torch of `python`, or "none". Cost: a start of Python. Errors: IoError when Python does not answer.
std::string torch_version(const std::string& python);

/// The address at which others reach this host.
struct HostAddress {
  std::string address;
  std::string network;  ///< the interface's name
};

/// The address of this host in the current ssh connection (`ssh_connection`: $SSH_CONNECTION or null); otherwise the
/// first address that is not loopback; otherwise 127.0.0.1.
HostAddress host_address(const char* ssh_connection);

/// The program `name` as the shell would find it: the path itself if it has a slash, otherwise through PATH; empty if
/// there is none.
std::string find_program(const std::string& name);

/// A port that was free just now. While `claim` exists, no other launcher on this host takes it.
struct Port {
  int number = 0;
  Descriptor claim;
};

/// `wanted`, or a free one when something listens there or another launcher has claimed it.
/// Errors: IoError when no port is available.
Port claim_port(int wanted);

/// 128 random bits from the kernel, in hexadecimal: names this job. Errors: IoError.
std::string make_job_token();

}  // namespace zeropage::launch
