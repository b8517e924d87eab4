/// \file
/// "Did you mean ...?"
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace zeropage {

/// The candidate nearest to `word`, counting insertions, deletions, replacements and swaps of neighbours (case does not
/// count); empty when none is near (at most a third of the word's characters, and at least two, may differ).
/// Cost: candidates x length^2; words of more than 64 characters have no neighbour.
std::string nearest(std::string_view word, const std::vector<std::string>& candidates);

}  // namespace zeropage
