// The choice of the level: those in this build, those that this processor can run, and the current
// one.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "sweep/level.hpp"

namespace schuss::sweep {

/// The levels that this processor and operating system can run, from the least capable to the most
/// capable.
std::vector<const Level*> available_levels();

/// The current level: the most capable available one until use_level selects another.
const Level& level();

/// Selects a level by its name; throws std::invalid_argument if it is unknown or not available
/// here.
void use_level(std::string_view name);

/// Sets multiplies_for_roots for a test, while no step runs; returns the previous value.
bool multiply_for_roots(bool multiply);

}  // namespace schuss::sweep
