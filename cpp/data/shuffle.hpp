// A random permutation.
#pragma once

#include <cstddef>
#include <cstdint>

namespace schuss::data {

/// Fills order with a random permutation of 0 ... count-1, drawn uniformly with the seed. The same
/// seed gives the same permutation on every processor.
void shuffle(std::int64_t* order, std::size_t count, std::uint64_t seed);

}  // namespace schuss::data
