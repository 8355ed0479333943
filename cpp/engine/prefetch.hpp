// Fetches memory that is used soon.
#pragma once

#include <algorithm>
#include <cstddef>

#include "engine/copy.hpp"

namespace schuss::engine {

/// Fetches some bytes, at most the first kilobyte: the processor then fetches the rest by itself.
/// Not through the second-level cache. Measured on an AMD EPYC (Zen 5), for 10,000 random rows of
/// 256 bytes of three arrays: 0.56 to 0.71 ms without, 0.39 with, and 0.78 through that cache.
/// Always inline: GCC removes calls of a function that only prefetches.
[[gnu::always_inline]] inline void prefetch(const std::byte* from, std::size_t bytes) {
    constexpr std::size_t most = 1024;
    bytes = std::min(bytes, most);
    for (std::size_t i = 0; i < bytes; i += cache_line) __builtin_prefetch(from + i, 0, 0);
}

}  // namespace schuss::engine
