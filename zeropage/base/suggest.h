/// \file
/// "Did you mean ...?"
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace zeropage {

/// The candidate with the smallest edit distance to `word`: insertions, deletions, replacements and swaps of
/// neighbours, ignoring case. Empty when more than a third of the word's characters (but at least two) differ.
/// Cost: candidates x length^2; the result is empty for words of more than 64 characters.
std::string nearest(std::string_view word, const std::vector<std::string>& candidates);

}  // namespace zeropage
