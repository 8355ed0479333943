// The keys of the random bits of a step.
#pragma once

#include <cstdint>

#include "rules/rule.hpp"

namespace schuss::engine {

/// A key for each state, and one for the parameter.
struct Streams {
    std::uint64_t keys[rules::max_states + 1] = {};

    Streams() = default;
    Streams(std::uint64_t seed, std::uint64_t step);
};

}  // namespace schuss::engine
