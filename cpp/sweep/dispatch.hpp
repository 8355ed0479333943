// Which table: the levels this build has, those this processor can run, and the one in use.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "sweep/level.hpp"

namespace schuss::sweep {

/// The levels that this processor and operating system can run, from the least to the best.
std::vector<const Level*> available_levels();

/// The level in use: the best available until use_level names another.
const Level& level();

/// Takes a level by its name; throws std::invalid_argument if it is unknown or not available here.
void use_level(std::string_view name);

}  // namespace schuss::sweep
