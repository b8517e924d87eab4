/// \file
/// An error of ours that passes through torch on its way to Python would arrive as a plain RuntimeError. The Python
/// layer therefore installs a translator that turns it, where it enters torch, into an exception that keeps its class.
#pragma once

#include <exception>

namespace zeropage {

/// Throws what stands for `error` in the language above.
using HostErrorTranslator = void (*)(std::exception_ptr error);

/// Installs the translator for the whole process. Called once, when the Python module is loaded.
void set_host_error_translator(HostErrorTranslator translator);

/// For a handler at the border to torch: throws the translation of the exception in hand, or that exception itself when
/// no translator is installed.
[[noreturn]] void rethrow_for_host();

}  // namespace zeropage
