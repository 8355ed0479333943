// The instruction set extensions of this processor.
#pragma once

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

}  // namespace schuss::runtime
