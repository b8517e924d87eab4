/// \file
/// An error of ours that torch passes on to Python would arrive there as a plain RuntimeError. So the Python
/// layer installs a translator. Where the error enters torch, the translator converts it to an exception that keeps its
/// class.
#pragma once

#include <exception>

namespace zeropage {

/// Throws the exception that represents `error` in the calling language.
using HostErrorTranslator = void (*)(std::exception_ptr error);

/// Installs the translator for the whole process. Called once, when the Python module is loaded.
void set_host_error_translator(HostErrorTranslator translator);

/// For exception handlers where calls enter torch: throws the translation of the current exception, or the exception
/// itself when no translator is installed.
[[noreturn]] void rethrow_for_host();

}  // namespace zeropage
