/// \file
/// Tables for people, in plain text.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace zeropage {

using Cells = std::vector<std::string>;

/// Lines with the same number of cells as aligned columns, two spaces apart: the first `left_columns` are left-aligned,
/// the others right-aligned. Every line ends with a newline and has no trailing spaces.
std::string text_table(const std::vector<Cells>& lines, std::size_t left_columns);

}  // namespace zeropage
