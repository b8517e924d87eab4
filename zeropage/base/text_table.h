/// \file
/// Tables for people, in plain text.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace zeropage {

using Cells = std::vector<std::string>;

/// Lines of equally many cells as columns, two spaces apart: the first `left_columns` to the left, the others to the
/// right. Every line ends with a newline and without spaces.
std::string text_table(const std::vector<Cells>& lines, std::size_t left_columns);

}  // namespace zeropage
