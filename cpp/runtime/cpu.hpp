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

}  // namespace schuss::runtime
