// The instruction set extensions and the cache of this processor.
#pragma once

#include <cstddef>
#include <cstdint>

namespace schuss::runtime {

/// One bit for each line of features.def.
enum class Feature : unsigned {
#define SCHUSS_FEATURE(name, ...) name,
#include "runtime/features.def"
};

/// The features that the processor has and whose registers the operating system saves.
std::uint64_t cpu_features();

/// Whether multiplications compute an AVX-512 square root faster than the divider. Measured: twice
/// as fast in an Adam step of float64 on Intel's Sapphire Rapids, 0.6 times as fast on AMD's Zen 5.
bool has_slow_divider();

/// The size of arrays, in bytes, of which little stays in the cache from one step to the next: half
/// of the last-level cache, at most 16 MB, since many cores share the largest caches.
std::size_t cache_size();

/// Sets the size, and returns the previous one. Results do not depend on it.
std::size_t set_cache_size(std::size_t bytes);

}  // namespace schuss::runtime
