// A random order of so many things.
#pragma once

#include <cstddef>
#include <cstdint>

namespace schuss::data {

/// Fills order with the numbers 0 ... count-1 in an order drawn from the seed, all orders alike
/// probable. The same seed gives the same order on every processor.
void shuffle(std::int64_t* order, std::size_t count, std::uint64_t seed);

}  // namespace schuss::data
